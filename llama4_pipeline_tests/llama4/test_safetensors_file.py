"""Reading and writing safetensors files against the library, and files that lie about themselves."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.safetensors_file import WEIGHT_DTYPES, read_header, write_file

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text("abc.", min_size=1, max_size=5), st.tuples(shapes, st.sampled_from(["F32", "F16", "BF16"]))
    )
)
def test_reads_and_writes_what_the_library_does(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[list[int], str]]
) -> None:
    directory = tmp_path_factory.mktemp("safetensors")
    written = {name: torch.randn(shape).to(DTYPES[dtype]) for name, (shape, dtype) in tensors.items()}
    save_file(written, directory / "theirs.safetensors")
    stored = read_header(directory / "theirs.safetensors")
    assert stored.keys() == written.keys()
    arrays = {}
    for name, tensor in written.items():
        array = arrays[name] = stored[name].read()
        assert array.dtype == WEIGHT_DTYPES[tensors[name][1]]
        np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())
        np.testing.assert_array_equal(stored[name].read(slice(1, 3)), array[1:3])
    layout = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write_file(directory / "ours.safetensors", layout, lambda name: np.array_split(arrays[name], 2))
    read_back = load_file(directory / "ours.safetensors")
    assert read_back.keys() == written.keys()
    assert all(torch.equal(read_back[name], tensor) for name, tensor in written.items())


def entry(start: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_raw(file: Path, header: Any, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(), "b": entry(4, 12)}, "b overlaps a"),
        ({"a": entry(), "b": entry(12, 20)}, "b leaves a gap behind a"),
        ({"a": entry(8, 16)}, "a leaves a gap behind the header"),
        ({"a": entry(), "b": entry(8, 80, [18])}, "truncated"),
        ({"a": entry()}, "8 bytes behind the last tensor"),
        ({"a": entry(0, 16)}, "offsets .* do not fit"),
        ({"a": entry(16, 8)}, "offsets .* do not fit"),
        ({"a": entry(-8, 0)}, "offsets .* do not fit"),
        ({"a": entry(0, 8, [-1, -2])}, "a is malformed"),
        ({"a": entry(0, 8, [True, 2])}, "a is malformed"),
        ({"a": entry(0, 8, "2")}, "a is malformed"),
        ({"a": entry(0, 8, [2], 32)}, "a is malformed"),
        ({"a": 1}, "a is malformed"),
        ({"a": entry(0, 8, [2], "Q4")}, "unknown dtype Q4"),
        ([], "not a JSON object"),
        (b"{broken", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": {"shape": 1' + b"0" * 5000 + b"}}", "not JSON"),
        (b'{"a": 1, "a": 2}', "names a twice"),
    ],
)
def test_a_header_that_does_not_hold_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    file = write_raw(tmp_path / "model.safetensors", header)
    with pytest.raises(InputError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 1000, 2**63])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match="header"):
        read_header(write_raw(tmp_path / "model.safetensors", {"a": entry()}, length=length))


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n")
    with pytest.raises(InputError, match=r"model\.safetensors: .*Git LFS.*`git lfs pull`"):
        read_header(file)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 200), flips=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4)
)
def test_a_damaged_file_is_refused_or_reads_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, file)
    data = bytearray(file.read_bytes()[:cut] if cut < 150 else file.read_bytes())
    for position, value in flips:
        if position < len(data):
            data[position] = value
    file.write_bytes(data)
    try:
        stored = read_header(file)
    except InputError:
        return
    for tensor in stored.values():
        if tensor.dtype_name in WEIGHT_DTYPES:
            assert tensor.read().shape == tensor.shape


def test_a_file_that_shrinks_under_the_reader_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, file)
    tensor = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated while it was read"):
        tensor.read()


def test_bfloat16_is_read_as_ml_dtypes(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    array = read_header(tmp_path / "model.safetensors")["a"].read()
    assert array.dtype == ml_dtypes.bfloat16
    assert array.tolist() == [1.5, -2.0]
