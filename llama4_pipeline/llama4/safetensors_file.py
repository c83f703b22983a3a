"""One safetensors file: its header checked before anything is read, its tensors read and written in pieces.

The library reads whole tensors and not every dtype through numpy; a stack of experts may be larger than
memory.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama4_pipeline.errors import InputError

WEIGHT_DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_LENGTH_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000
_LISTED = 3  # names in a message


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        file: The safetensors file.
        dtype_name: Its dtype as the header writes it ("BF16").
        shape: Its shape.
        start: Offset of its first byte from the start of the file.
        size: Its bytes.
    """

    file: Path
    dtype_name: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of a weight; KeyError where it is not float32, float16 or bfloat16."""
        return WEIGHT_DTYPES[self.dtype_name]

    def read(self, rows: slice | None = None) -> np.ndarray:
        """Reads the tensor, or a run of its rows; no other byte of it is read or kept.

        Args:
            rows: A slice of axis 0 with step 1; None is the whole tensor.

        Returns:
            A fresh array of the stored dtype, shape [rows, ...].

        Raises:
            InputError: The file ended early: it changed after its header was checked.
        """
        first, count, shape = select_rows(self.shape, rows)
        row_size = math.prod(self.shape[1:]) * self.dtype.itemsize
        # Bytes first: numpy's reader does not know the bfloat16 of ml_dtypes.
        data = np.fromfile(self.file, np.uint8, count * row_size, offset=self.start + first * row_size)
        if data.size != count * row_size:
            raise InputError(f"{self.file}: truncated while it was read; download it again")
        return data.view(self.dtype).reshape(shape)


def select_rows(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int, tuple[int, ...]]:
    """Resolves a slice of axis 0 into its first row, the number of rows, and the shape of the piece."""
    if rows is None:
        return 0, shape[0] if shape else 1, shape
    first, stop, step = rows.indices(shape[0])
    if step != 1:
        raise ValueError(f"rows must have step 1, not {step}")
    count = max(stop - first, 0)
    return first, count, (count, *shape[1:])


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Reads and checks the header of a safetensors file.

    Every dtype is known, every shape fills its bytes, the tensors lie one after the other without gap or
    overlap, and the file ends where the last one ends. (A hole could hide data; a short file is a broken
    download.)

    Raises:
        InputError: The file is no safetensors file, is truncated, or its header does not hold.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        begins = stream.read(len(_LFS_POINTER))
        if begins == _LFS_POINTER:
            raise InputError(
                f"{file}: a pointer of Git LFS, not the weights; run `git lfs pull` where it was cloned"
            )
        stream.seek(_LENGTH_BYTES)
        length = int.from_bytes(begins[:_LENGTH_BYTES], "little")
        data_start = _LENGTH_BYTES + length
        if not 2 <= length <= _LONGEST_HEADER or size < _LENGTH_BYTES:
            raise InputError(f"{file}: not a safetensors file (its header claims {length:,} bytes)")
        if data_start > size:
            raise InputError(f"{file}: truncated inside its header ({size:,} bytes); download it again")
        text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=partial(without_duplicates, file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its header is not JSON ({error}); download it again") from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: its header is not a JSON object; download it again")
    header.pop("__metadata__", None)
    tensors = {name: _stored_tensor(file, name, entry, data_start) for name, entry in header.items()}
    _check_layout(file, tensors, data_start, size)
    return tensors


def write_file(
    file: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    pieces: Callable[[str], Iterable[np.ndarray]],
) -> None:
    """Writes a safetensors file piece by piece; no tensor need be in memory whole.

    Args:
        file: The file to write; an existing one is replaced.
        tensors: Dtype and shape of each tensor, in the order they are to lie.
        pieces: Called with a name, yields the tensor's rows from first to last, in arrays of its dtype.
    """
    names = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        stream.write(text)
        for name in tensors:
            for piece in pieces(name):
                stream.write(np.ascontiguousarray(piece).view(np.uint8).data)


def without_duplicates(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, as a hook of `json.loads`, which would keep the last of two with one name.

    Raises:
        InputError: A name stands twice in an object of the file.
    """
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(f"{file}: it names {listed(twice)} twice")
    return dict(pairs)


def _stored_tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            pass
        case _:
            raise InputError(f"{file}: the header entry of {name} is malformed")
    if dtype not in _BITS:
        raise InputError(f"{file}: {name} has the unknown dtype {dtype}")
    if not 0 <= start <= end or math.prod(shape) * _BITS[dtype] != (end - start) * 8:
        raise InputError(f"{file}: {name} is {dtype} {shape}, its offsets [{start}, {end}] do not fit that")
    return StoredTensor(file, dtype, tuple(shape), data_start + start, end - start)


def _check_layout(file: Path, tensors: Mapping[str, StoredTensor], data_start: int, size: int) -> None:
    end, before = data_start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            fault = "overlaps" if tensor.start < end else "leaves a gap behind"
            raise InputError(f"{file}: {name} {fault} {before}")
        end, before = tensor.start + tensor.size, name
    if end > size:
        raise InputError(f"{file}: truncated: {size:,} bytes of {end:,}; download it again")
    if end < size:
        raise InputError(f"{file}: {size - end:,} bytes behind the last tensor belong to none")


def listed(names: Iterable[str]) -> str:
    """The first few names and how many there are, for a one-line message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more
