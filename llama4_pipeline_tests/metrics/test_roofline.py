"""Bytes that a token reads, counted by hand and from the graph's structure."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.qdq import quantize_with_ort
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.methods import QDQ_DYNAMIC, QDQ_STATIC
from llama4_pipeline.metrics.roofline import (
    bytes_by_node,
    cache_read_bytes,
    roofline_share,
    stored_checkpoint,
    stored_graph,
)
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

MAX_CONTEXT = 64


@pytest.fixture(scope="module")
def checkpoint(tiny_random_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_random_checkpoint)


@pytest.fixture(scope="module")
def graphs(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("graphs")
    export_graph(checkpoint, root / "portable", max_context=MAX_CONTEXT)
    fuse_graph(root / "portable", root / "fused")
    quantize_graph(root / "fused", root / "int8", precision="int8")
    return {form: root / form for form in ("portable", "fused", "int8")}


@pytest.mark.parametrize("form", ["portable", "fused"])
def test_a_graph_reads_what_the_architecture_says(checkpoint, graphs, form):
    stored = stored_graph(graphs[form])
    architecture = checkpoint.architecture
    more = (
        stored.active_bytes - 4 * architecture.active_parameters()
    )  # an embedding row, constants of the graph
    assert 4 * architecture.hidden_size <= more < 1500
    assert stored.precision == "float32"
    assert stored.cache_element_bytes == 4
    assert stored.weight_bytes >= 4 * architecture.parameters()


@pytest.mark.parametrize("form", ["portable", "fused", "int8"])
def test_the_nodes_read_together_what_the_graph_reads(graphs, form):
    nodes = sum(node.read_bytes for node in bytes_by_node(graphs[form]).values())
    # Constants that several nodes read count once for each.
    assert (
        stored_graph(graphs[form]).active_bytes <= nodes + 1 < stored_graph(graphs[form]).active_bytes + 1500
    )


def test_a_node_of_one_chosen_expert_reads_that_expert(tmp_path):
    write_random_checkpoint(tmp_path / "two", num_experts_per_tok=2)
    export_in_one_stream(
        Checkpoint.open(tmp_path / "two"), tmp_path / "graph", form="fused", precision="fp32", max_context=64
    )
    quantize_graph(tmp_path / "graph", tmp_path / "int8", precision="int8")
    for graph in (tmp_path / "graph", tmp_path / "int8"):
        nodes = sum(node.read_bytes for node in bytes_by_node(graph).values())
        active = stored_graph(graph).active_bytes
        assert active <= nodes + 1 < active + 1500


@pytest.mark.parametrize("method", [QDQ_DYNAMIC, QDQ_STATIC])
def test_a_graph_of_onnx_runtimes_quantizer_is_int8(graphs, method, tmp_path):
    text = Calibration(tuple(np.random.default_rng(7).integers(3, 131, 40) for _ in range(4)))
    quantize_with_ort(graphs["fused"], tmp_path, method=method, calibration=text)
    assert stored_graph(tmp_path).precision == "int8"
    nodes = {
        node.name: node for node in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    }
    table = [
        found.read_bytes
        for name, found in bytes_by_node(tmp_path).items()
        if any("embed_tokens" in each for each in nodes[name].input)
    ]
    assert 0 < sum(table) < 1000  # a row, not 131 of 48


def test_of_a_quantized_table_one_row_is_read(checkpoint, graphs):
    model = onnx.load(str(graphs["int8"] / "model.onnx"), load_external_data=False)
    nodes = bytes_by_node(graphs["int8"])
    table = [node for node in model.graph.node if any("embed_tokens" in name for name in node.input)]
    assert {node.op_type for node in table} == {"Reshape", "GatherBlockQuantized"}
    width = checkpoint.architecture.hidden_size
    row = width + 4 * width // 16  # codes, and scales of blocks of 16
    shape = 16  # what Reshape takes beside the codes
    assert row <= sum(nodes[node.name].read_bytes for node in table) <= row + shape


def test_a_checkpoint_reads_by_its_type(checkpoint):
    architecture = checkpoint.architecture
    assert stored_checkpoint(architecture, "float32").active_bytes == 4 * architecture.active_parameters()
    half = stored_checkpoint(architecture, "bfloat16")
    assert (half.active_bytes, half.weight_bytes) == (
        2 * architecture.active_parameters(),
        2 * architecture.parameters(),
    )


def test_more_experts_cost_nothing_at_batch_1(tmp_path):
    few, many = (
        Checkpoint.open(write_random_checkpoint(tmp_path / str(count), num_local_experts=count)).architecture
        for count in (2, 8)
    )
    router = 4 * 3 * (8 - 2) * few.hidden_size  # three MoE layers
    difference = (
        stored_checkpoint(many, "float32").active_bytes - stored_checkpoint(few, "float32").active_bytes
    )
    assert difference == router


def test_chunked_layers_read_their_chunk_only(checkpoint):
    # Three layers see chunks of 16 tokens, one sees everything; the step at position 20 sees 5 and 21 tokens.
    per_token = 2 * 2 * 16 * 4
    assert cache_read_bytes(checkpoint.architecture, 20, 2, 4) == per_token * (3 * 5 + 21)
    assert cache_read_bytes(checkpoint.architecture, 20, 3, 4) == per_token * (3 * 5.5 + 21.5)


def test_share_is_one_at_the_roof():
    assert roofline_share(1_000_000, 1e9, step_ms=1.0) == pytest.approx(1.0)
    assert roofline_share(1_000_000, 1e9, step_ms=4.0) == pytest.approx(0.25)
