import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error

YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
    }
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("packed, RoPE, no norm", {"use_qk_norm": False}),
        ("NoPE without temperature", {"attn_temperature_tuning": False}),
        ("all RoPE", {"no_rope_layers": [1, 1, 1, 1]}),
        ("bias on projections", {"attention_bias": True}),
        ("tied embeddings", {"tie_word_embeddings": True}),
        ("yarn, whose factor on the angles a norm would take out", {"use_qk_norm": False} | YARN),
    ],
)
def test_every_kind_of_attention(tmp_path: Path, name: str, changes: dict) -> None:
    checkpoint = Checkpoint.open(
        write_random_checkpoint(tmp_path / "checkpoint", num_hidden_layers=4, **changes)
    )
    export_graph(checkpoint, tmp_path / "portable", max_context=64)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 1, 40), np.ones((1, 40), np.int64)

    for form in ("portable", "fused"):
        logits = Session(tmp_path / form).in_pieces(ids, mask, [16, 7, 1, 8, 8])
        assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4, (name, form)
    graph = load_graph(tmp_path / "fused").graph
    scales = {n.attributes["scale"].as_float() for n in graph if n.op_type == "GroupQueryAttention"}
    assert scales == {1.0}  # another one costs a decode step the kernel for one query
    norms = [n.inputs[1].const_value.shape.numpy() for n in graph if n.op_type == "BranchwiseRMSNorm"]
    assert all(shape == (checkpoint.architecture.head_dim,) for shape in norms)  # slow with weights by head


def test_both_of_the_attention_kernels(
    checkpoint: Checkpoint, fused_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = random_ids(checkpoint, 1, 40), np.ones((1, 40), np.int64)
    logits = []
    for plain in ("0", "1"):
        monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", plain)
        logits.append(Session(fused_graph).in_pieces(ids, mask, [16, 7, 1, 8, 8]))

    for each in logits:
        assert relative_error(each, reference_logits(checkpoint, ids, mask), mask) < 1e-4
    assert not np.array_equal(*logits)  # else this ONNX Runtime does not know the variable


@pytest.mark.parametrize(("max_context", "lengths"), [(16, 1), (17, 2)])
def test_a_cache_of_one_chunk_only_where_the_context_leaves_the_first(
    checkpoint: Checkpoint, tmp_path: Path, max_context: int, lengths: int
) -> None:
    export_graph(checkpoint, tmp_path / "portable", max_context=max_context)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")

    model = load_graph(tmp_path / "fused")
    attention = [n for n in model.graph if n.op_type == "GroupQueryAttention"]

    assert len({node.inputs[5] for node in attention}) == lengths
    assert len({str(node.inputs[3].shape[2]) for node in attention}) == lengths
    assert ("llama4.chunk_size" in model.metadata_props) == (lengths == 2)
    assert all(len(node.inputs) == 7 for node in attention)


@pytest.mark.parametrize(("max_context", "tables"), [(15, 0), (16, 1)])
def test_no_temperature_where_the_context_never_leaves_its_first_step(
    tmp_path: Path, max_context: int, tables: int
) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", floor_scale=16))
    export_graph(checkpoint, tmp_path / "portable", max_context=max_context)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 1, max_context), np.ones((1, max_context), np.int64)

    graph = load_graph(tmp_path / "fused").graph
    logits = Session(tmp_path / "fused").in_pieces(ids, mask, [max_context - 1, 1])

    assert sum(name == "attention.temperature" for name in graph.initializers) == tables
    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_tables_of_a_long_context_are_written_in_runs(tmp_path: Path) -> None:
    context = 100_000
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", floor_scale=7))
    export_graph(checkpoint, tmp_path / "portable", max_context=context)
    tracemalloc.start()
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    cosine_bytes = context * checkpoint.architecture.head_dim // 2 * 4

    initializers = load_graph(tmp_path / "fused").graph.initializers
    cos, sin, temperature = (
        initializers[name].const_value.numpy()
        for name in ("rotary.cos", "rotary.sin", "attention.temperature")
    )

    assert peak < cosine_bytes
    positions = np.arange(context, dtype=np.float32)
    frequencies, factor = checkpoint.rotary_frequencies()
    angles = (positions[:, None] * frequencies.numpy()).astype(np.float64)
    np.testing.assert_array_equal(cos, (np.cos(angles) * factor).astype(np.float32))
    np.testing.assert_array_equal(sin, (np.sin(angles) * factor).astype(np.float32))
    curve = np.log(np.floor((positions + 1) / np.float32(7)) + 1) * np.float32(0.1) + 1
    scale = checkpoint.architecture.head_dim**-0.5
    np.testing.assert_array_equal(temperature, (curve * scale).astype(np.float32))


def test_context_beyond_the_limit_is_refused_by_the_runtime(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_graph(checkpoint, tmp_path / "portable", max_context=16)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 1, 17), np.ones((1, 17), np.int64)

    with pytest.raises(Exception, match="RotaryEmbedding"):
        Session(tmp_path / "fused").in_pieces(ids, mask, [17])


def test_a_head_size_that_the_kernel_refuses_is_refused_before(tmp_path: Path) -> None:
    odd = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", head_dim=12))
    export_graph(odd, tmp_path / "portable", max_context=64)

    with pytest.raises(InputError, match=r"head_dim 12.*portable"):
        fuse_graph(tmp_path / "portable", tmp_path / "fused")
