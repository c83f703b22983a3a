"""Where weights come from: names, shards, and directories that must be refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.weights import INDEX_FILE, SafetensorsSource, canonical_name, iterate_rows
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG, write_random_checkpoint

ARCHITECTURE = Architecture.from_config(PECULIAR_CONFIG)
TIED = Architecture.from_config(PECULIAR_CONFIG | {"tie_word_embeddings": True})
NORM = "model.norm.weight"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path, max_shard_size="100KB")


@pytest.fixture(scope="module")
def tensors(tiny_random_checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_random_checkpoint / "model.safetensors")


def test_reads_every_tensor_in_the_order_of_the_model(shards: Path, tensors: dict[str, torch.Tensor]) -> None:
    source = SafetensorsSource(shards, ARCHITECTURE)
    assert source.names() == tuple(ARCHITECTURE.checkpoint_tensors())
    for name in source.names():
        assert source.shape(name) == tuple(tensors[name].shape)
        np.testing.assert_array_equal(source.read(name), tensors[name].numpy())


def test_rows_are_iterated_in_pieces(shards: Path, tensors: dict[str, torch.Tensor]) -> None:
    source = SafetensorsSource(shards, ARCHITECTURE)
    name = "model.embed_tokens.weight"
    pieces = list(iterate_rows(source, name, piece_bytes=10 * 48 * 4))
    assert [len(piece) for piece in pieces] == [10] * 13 + [1]
    np.testing.assert_array_equal(np.concatenate(pieces), tensors[name].numpy())
    assert len(list(iterate_rows(source, name, piece_bytes=1))) == 131


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
        ("language_model.model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
        ("model.language_model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
        ("model.language_model.model.norm.weight", NORM),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_model.class_embedding", None),
        ("model.vision_model.class_embedding", None),
        ("multi_modal_projector.linear_1.weight", None),
        ("model.multi_modal_projector.linear_1.weight", None),
    ],
)
def test_canonical_names(stored: str, canonical: str | None) -> None:
    assert canonical_name(stored) == canonical


def refused(directory: Path, message: str, architecture: Architecture = ARCHITECTURE) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SafetensorsSource(directory, architecture)
    assert "\n" not in str(caught.value)


def edit_index(directory: Path, edit: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((directory / INDEX_FILE).read_text())
    edit(index["weight_map"])
    (directory / INDEX_FILE).write_text(json.dumps(index))


def test_a_missing_shard_is_named(shards: Path) -> None:
    first = min(shards.glob("*.safetensors"))
    first.unlink()
    refused(shards, f"shard missing: {first.name}")


def test_a_truncated_shard_is_named(shards: Path) -> None:
    first = min(shards.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    refused(shards, f"{first.name}: truncated")


@pytest.mark.parametrize(
    "path", ["../other.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors"]
)
def test_no_shard_lies_outside_the_directory(shards: Path, path: str) -> None:
    edit_index(shards, lambda names: names.update({NORM: path}))
    refused(shards, "outside the directory")


def test_a_shard_that_is_no_safetensors_file_is_refused(shards: Path) -> None:
    edit_index(shards, lambda names: names.update({NORM: "model.bin"}))
    refused(shards, "is in 'model.bin', which is no safetensors file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_refused(shards: Path, text: str) -> None:
    (shards / INDEX_FILE).write_text(text)
    refused(shards, "weight_map")


def test_an_index_that_differs_from_its_shards_is_refused(shards: Path) -> None:
    edit_index(shards, lambda names: names.pop(NORM))
    refused(shards, rf"index and shards differ: 1 extra \({NORM}\)")
    edit_index(shards, lambda names: names.update({NORM: min(names.values()), "x": min(names.values())}))
    refused(shards, "2 missing .*1 extra")


def test_a_tensor_in_two_shards_is_refused(shards: Path) -> None:
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    stolen = next(iter(load_file(first).items()))
    save_file(load_file(second) | dict([stolen]), second)
    refused(shards, rf"1 duplicate \({stolen[0]}\)")


def test_a_tensor_that_the_index_names_twice_is_refused(shards: Path) -> None:
    text = (shards / INDEX_FILE).read_text()
    (shards / INDEX_FILE).write_text(
        text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "x.safetensors", ')
    )
    refused(shards, f"{INDEX_FILE}: it names {NORM} twice")


def test_a_shard_that_the_index_does_not_name_is_refused(shards: Path) -> None:
    save_file({"x": torch.ones(1)}, shards / "model-00009-of-00009.safetensors")
    refused(shards, rf"model-00009-of-00009.safetensors beside the shards that {INDEX_FILE} names")


def test_shards_beside_a_single_file_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"y": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    refused(
        tmp_path,
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors beside model.safetensors",
    )


def test_shards_without_an_index_are_refused(shards: Path) -> None:
    (shards / INDEX_FILE).unlink()
    refused(shards, f"without {INDEX_FILE}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickled_checkpoint_is_refused_with_the_reason(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"\x80\x02.")
    refused(tmp_path, f"{file} is pickled, and loading a pickle runs code")


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no weights; expected model.safetensors or ")


def test_missing_extra_and_duplicate_tensors_are_listed(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    wrong = {name: tensor for name, tensor in tensors.items() if "layers.0.self_attn" not in name}
    wrong |= {"model.layers.4.x": torch.ones(1), f"language_model.{NORM}": torch.ones(48)}
    save_file(wrong, tmp_path / "model.safetensors")
    refused(
        tmp_path,
        r"4 missing \(.*k_proj.weight, .*o_proj.weight, .*q_proj.weight and 1 more\); "
        rf"1 extra \(model.layers.4.x\); 1 duplicate \({NORM}\)",
    )


def test_a_wrong_shape_or_dtype_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors | {NORM: torch.ones(47)}, tmp_path / "model.safetensors")
    refused(tmp_path, rf"{NORM} is \[47\], config.json makes it \[48\]")
    save_file(tensors | {NORM: torch.ones(48, dtype=torch.float64)}, tmp_path / "model.safetensors")
    refused(tmp_path, f"{NORM} is F64; float32, float16 and bfloat16 are read, so store it as one of them")
    save_file(tensors | {NORM: torch.ones(48, dtype=torch.int8)}, tmp_path / "model.safetensors")
    refused(tmp_path, f"{NORM} is I8; .*, so take the checkpoint before it was quantized")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U8"])
def test_a_quantized_checkpoint_is_told_by_its_weights_and_not_by_its_scales(
    tmp_path: Path, tensors: dict[str, torch.Tensor], dtype: str
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = {
        "F8_E4M3": tensors[name].to(torch.float8_e4m3fn),
        "U8": torch.zeros(64 * 48 // 2, 1, dtype=torch.uint8),  # two weights a byte
    }
    save_file(
        tensors | {name: stored[dtype], f"{name}_scale": torch.ones(64, 1)}, tmp_path / "model.safetensors"
    )
    refused(tmp_path, f"{name} is {dtype}; .*, so take the checkpoint before it was quantized")


def test_a_tied_checkpoint_may_repeat_the_embedding_but_not_contradict_it(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, "lm_head.weight differs from the embedding", TIED)
    same = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | same, tmp_path / "model.safetensors")
    assert "lm_head.weight" not in SafetensorsSource(tmp_path, TIED).names()
