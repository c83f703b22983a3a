"""GGUF: what llama.cpp would compute differently is refused by name; what is written has the checkpoint's numbers."""

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline.metrics.roofline import stored_gguf
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG, spoil, write_random_checkpoint

gguf = pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")

from llama4_pipeline.llama4.gguf import write_gguf  # noqa: E402  behind the skip

REPRESENTABLE = PECULIAR_CONFIG | {
    "hidden_size": 64,
    "intermediate_size_mlp": 96,
    "moe_layers": None,
    "floor_scale": 8192,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 16384,
}


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 1.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [8.0] * 8,
}

DENSE = {"moe_layers": [], "no_rope_layers": [1, 1, 1, 1]}


def write(tmp_path, encoding="f32", max_context=4096, **changes):
    write_synthetic_checkpoint(tmp_path / "checkpoint", REPRESENTABLE | changes, seed=0, dtype="bfloat16")
    out = tmp_path / "model.gguf"
    write_gguf(Checkpoint.open(tmp_path / "checkpoint"), out, encoding, max_context)
    return gguf.GGUFReader(out)


@pytest.mark.parametrize(
    ("key", "changes", "max_context"),
    [
        ("no_rope_layers", {"no_rope_layer_interval": 3}, 4096),
        ("num_hidden_layers", {"num_hidden_layers": 3}, 4096),
        ("attention_chunk_size", {"attention_chunk_size": 64}, 4096),
        ("attention_chunk_size", {"attention_chunk_size": None}, 9000),
        ("floor_scale", {"floor_scale": 8}, 4096),
        ("floor_scale", {"attn_temperature_tuning": False}, 8192),
        ("use_qk_norm", {"use_qk_norm": False}, 4096),
        ("moe_layers", {"moe_layers": [0, 2, 3]}, 4096),
        ("attention_bias", {"attention_bias": True}, 4096),
        ("rope_parameters", {"rope_parameters": LONG_ROPE}, 65),
    ],
)
def test_what_llamacpp_cannot_represent_is_refused_by_its_key(tmp_path, key, changes, max_context):
    with pytest.raises(InputError, match=f"config key {key}: llama.cpp cannot represent this model"):
        write(tmp_path, max_context=max_context, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_the_context_does_not_reach_does_not_count(tmp_path):
    write(tmp_path / "short", max_context=64, rope_parameters=LONG_ROPE)
    write(tmp_path, max_context=4096, attention_chunk_size=None, attn_temperature_tuning=False)


def test_a_width_that_is_no_multiple_of_the_block_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="is 48 wide, no multiple of the 32 weights that share a scale in q4_0"
    ):
        write(tmp_path, "q4_0", hidden_size=48)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("encoding", "most"), [("f16", "65504"), ("q8_0", "8.31901e"), ("q4_0", "524032")])
def test_weights_beyond_float16_are_refused(tmp_path, encoding, most):
    """Blocks of codes have a float16 scale."""
    checkpoint = write_random_checkpoint(
        tmp_path / "checkpoint", **(REPRESENTABLE | {"initializer_range": 1e7})
    )
    with pytest.raises(InputError, match=rf"\.weight holds .*, beyond the {most}.* can hold: write f32"):
        write_gguf(Checkpoint.open(checkpoint), tmp_path / "model.gguf", encoding, 300)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("encoding", ["f32", "f16", "q8_0", "q4_0"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, encoding):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", **REPRESENTABLE)
    spoil(checkpoint, "model.layers.1.self_attn.o_proj.weight")
    with pytest.raises(
        InputError, match=r"blk\.1\.attn_output\.weight has weights that are not finite: take a"
    ):
        write_gguf(Checkpoint.open(checkpoint), tmp_path / "model.gguf", encoding, 300)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(("encoding", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_every_matrix_is_stored_in_the_encoding(tmp_path, encoding, bits):
    for tensor in write(tmp_path, encoding).tensors:
        whole = len(tensor.shape) == 1 or tensor.name.endswith("ffn_gate_inp.weight")
        assert tensor.n_bytes * 8 == tensor.n_elements * (32 if whole else bits), tensor.name


def values_of(tmp_path, **changes):
    """What the file holds, and the checkpoint that it was made of."""
    tensors = write(tmp_path, **changes).tensors
    weights = Checkpoint.open(tmp_path / "checkpoint").weights
    return {each.name: gguf.dequantize(each.data, each.tensor_type) for each in tensors}, weights


def test_experts_are_turned_and_gate_and_up_are_apart(tmp_path):
    found, weights = values_of(tmp_path)
    gate_up, down = (
        weights.read(f"model.layers.1.feed_forward.experts.{stack}_proj").astype(np.float32).swapaxes(1, 2)
        for stack in ("gate_up", "down")
    )  # [experts, out, in]
    np.testing.assert_array_equal(found["blk.1.ffn_gate_exps.weight"], gate_up[:, :32])
    np.testing.assert_array_equal(found["blk.1.ffn_up_exps.weight"], gate_up[:, 32:])
    np.testing.assert_array_equal(found["blk.1.ffn_down_exps.weight"], down)


@pytest.mark.parametrize(("changes", "halves"), [({}, False), (DENSE, True)], ids=["llama4", "hunyuan-dense"])
def test_pairs_that_turn_together_stand_where_the_form_wants_them(tmp_path, changes, halves):
    found, weights = values_of(tmp_path, **changes)
    for letter in "qkv":
        rows = weights.read(f"model.layers.1.self_attn.{letter}_proj.weight").astype(np.float32)
        if halves and letter in "qk":
            rows = rows.reshape(-1, 8, 2, 64).swapaxes(1, 2).reshape(rows.shape)  # heads of eight pairs
        np.testing.assert_array_equal(found[f"blk.1.attn_{letter}.weight"], rows)


def test_rope_factors_divide_the_default_frequencies(tmp_path):
    factors = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    found, _ = values_of(tmp_path, max_context=64, rope_parameters=LONG_ROPE | {"short_factor": factors})
    np.testing.assert_allclose(found["rope_freqs.weight"], factors, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bytes_that_a_token_reads(tmp_path, tied):
    reader = write(tmp_path, "q8_0", tie_word_embeddings=tied, num_experts_per_tok=2)
    stored, architecture = stored_gguf(tmp_path / "model.gguf")
    assert (stored.precision, stored.cache_element_bytes) == ("Q8_0", 2)
    assert stored.weight_bytes == sum(tensor.n_bytes for tensor in reader.tensors)
    routed = sum(tensor.n_bytes for tensor in reader.tensors if "_exps." in tensor.name)
    embedding = next(tensor.n_bytes for tensor in reader.tensors if tensor.name == "token_embd.weight")
    row = 0 if tied else embedding // architecture.vocab_size
    looked_up = 0 if tied else embedding
    assert stored.active_bytes == pytest.approx(stored.weight_bytes - routed / 2 - looked_up + row, abs=1)


def test_two_that_write_one_file_write_apart(tmp_path, monkeypatch):
    """Each has its own unfinished file; the one that is done last stays."""
    write_synthetic_checkpoint(tmp_path / "checkpoint", REPRESENTABLE, seed=0, dtype="bfloat16")
    checkpoint, out = Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "model.gguf"
    unfinished = []
    begin = gguf.GGUFWriter.write_header_to_file

    def another_in_between(writer):
        begin(writer)
        unfinished.append({path.name for path in tmp_path.glob(".*")})
        if len(unfinished) == 1:
            write_gguf(checkpoint, out, "q8_0", 4096)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", another_in_between)
    write_gguf(checkpoint, out, "f32", 4096)
    assert len(unfinished[1]) == 2
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors} == {"F32"}
