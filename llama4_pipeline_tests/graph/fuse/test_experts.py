from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.functions import DOMAIN
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.fuse.experts import fuse_experts
from llama4_pipeline.graph.fuse.rewriter import Rewriter
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error


@pytest.mark.parametrize(("experts", "per_token"), [(1, 1), (5, 2), (4, 4), (128, 1)])
def test_routing(tmp_path: Path, experts: int, per_token: int) -> None:
    checkpoint = Checkpoint.open(
        write_random_checkpoint(
            tmp_path / "checkpoint", num_local_experts=experts, num_experts_per_tok=per_token
        )
    )
    export_graph(checkpoint, tmp_path / "portable", max_context=64)
    report = fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 2, 24), np.ones((2, 24), np.int64)
    reference = reference_logits(checkpoint, ids, mask)

    assert relative_error(Session(tmp_path / "portable").in_pieces(ids, mask, [24]), reference, mask) < 1e-4
    assert (
        relative_error(Session(tmp_path / "fused").in_pieces(ids, mask, [16, *[1] * 8]), reference, mask)
        < 1e-4
    )
    assert report.nodes_after["MoE"] == 3 * per_token


def test_choices_share_the_weights(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", num_experts_per_tok=2))
    export_graph(checkpoint, tmp_path / "portable", max_context=64)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")

    moe = [node for node in load_graph(tmp_path / "fused").graph if node.op_type == "MoE"]

    assert moe[0].inputs[2] is moe[1].inputs[2]


@pytest.mark.parametrize("winner", [0, 1])
def test_larger_logit_wins_where_their_softmax_is_one_number(winner: int) -> None:
    hidden, width = 16, 16
    down = np.zeros((2, hidden, width), np.float32)
    down[winner] = 1
    session = _only_experts(gate_up=np.ones((2, 2 * width, hidden), np.float32), down=down)
    logits = np.full((1, 1, 2), 0.01, np.float32)
    logits[..., winner] = np.nextafter(np.float32(0.01), np.float32(1))

    (out,) = session.run(None, {"hidden": np.ones((1, 1, hidden), np.float32), "logits": logits})

    assert np.all(out > 0)


def _only_experts(gate_up: np.ndarray, down: np.ndarray) -> onnxruntime.InferenceSession:
    """A fused graph of one block of experts: hidden [1, 1, H] and router logits [1, 1, E] come from outside."""
    inputs = [
        ir.Value(name=name, shape=ir.Shape((1, 1, size)), type=ir.TensorType(ir.DataType.FLOAT))
        for name, size in (("hidden", gate_up.shape[2]), ("logits", len(gate_up)))
    ]
    weights = [
        ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in (("gate_up", gate_up), ("down", down))
    ]
    for value, array in zip(weights, (gate_up, down), strict=True):
        value.const_value = ir.tensor(array)
    call = ir.node(
        "MixtureOfExperts", [*inputs, *weights], {"experts_per_token": 1}, domain=DOMAIN, name="moe"
    )
    call.outputs[0].name, call.outputs[0].type = "routed", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, call.outputs, nodes=[call], initializers=weights, opset_imports={"": 20, MICROSOFT: 1}
    )
    rewriter = Rewriter(ir.Model(graph, ir_version=10))
    fuse_experts(rewriter)
    rewriter.finish()
    model = ir.serde.serialize_model(rewriter.model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
