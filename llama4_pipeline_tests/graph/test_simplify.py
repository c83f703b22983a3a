from pathlib import Path

import numpy as np

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.simplify import simplify_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids


def test_simplified_graph_gives_the_same_numbers_from_the_same_weights(
    portable_graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    report = simplify_graph(portable_graph, tmp_path)
    ids, mask = random_ids(checkpoint, 2, 20), np.ones((2, 20), np.int64)

    before = Session(portable_graph).in_pieces(ids, mask, [13, 7])
    after = Session(tmp_path).in_pieces(ids, mask, [13, 7])

    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert sum(report.nodes_after.values()) <= sum(report.nodes_before.values())
    assert (tmp_path / "model.onnx.data").samefile(portable_graph / "model.onnx.data")


def test_repeated_nodes_go(portable_graph: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    from llama4_pipeline.graph.external_data import save_graph

    model = load_graph(portable_graph)
    norm = next(node for node in model.graph if node.op_type == "MatMul")
    detour = ir.node("Identity", [norm.inputs[0]])
    detour.outputs[0].name = "detour"
    model.graph.insert_before(norm, detour)
    norm.replace_input_with(0, detour.outputs[0])
    save_graph(model, tmp_path / "detour", share_weights=True)

    report = simplify_graph(tmp_path / "detour", tmp_path / "out")

    assert report.removed == {"Identity": 1}
