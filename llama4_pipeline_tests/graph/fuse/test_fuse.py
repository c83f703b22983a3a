from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph, save_graph
from llama4_pipeline.graph.fuse import fuse_graph


def _layer_nodes(graph: Path, layer: int) -> Counter:
    """Operators between the input of a layer's attention and the next layer's."""
    nodes = list(load_graph(graph).graph)
    names = [[value.name for value in node.outputs] for node in nodes]
    start = next(i for i, outputs in enumerate(names) if f"layers.{layer}.attention_norm" in outputs)
    end = next(i for i, outputs in enumerate(names) if f"layers.{layer}.output" in outputs)
    return Counter(node.op_type for node in nodes[start + 1 : end + 1])


def test_moe_layer_with_rope_has_these_nodes_and_no_other(fused_graph: Path) -> None:
    assert _layer_nodes(fused_graph, 0) == {
        "MatMul": 5,  # qkv, o, router, gate and up of the shared expert, its down
        "Split": 3,  # value from query and key; query from key; gate from up
        "Reshape": 1,  # router's choice by token
        "BranchwiseRMSNorm": 1,  # QK-norm
        "RotaryEmbedding": 1,
        "GroupQueryAttention": 1,
        "SkipSimplifiedLayerNormalization": 2,
        "TopK": 1,  # the chosen expert and its logit
        "OneHot": 1,  # the choice, as the operator takes it
        "Sigmoid": 1,
        "Mul": 2,  # expert input scaled; gate times up
        "MoE": 1,
        "QuickGelu": 1,
        "Add": 1,  # routed and shared
    }


def test_dense_layer_has_these_nodes_and_no_other(fused_graph: Path) -> None:
    assert _layer_nodes(fused_graph, 1) == {
        "MatMul": 4,
        "Split": 3,
        "BranchwiseRMSNorm": 1,
        "RotaryEmbedding": 1,
        "GroupQueryAttention": 1,
        "SkipSimplifiedLayerNormalization": 2,
        "QuickGelu": 1,
        "Mul": 1,
    }


def test_weights_are_shared_with_the_portable_graph(portable_graph: Path, fused_graph: Path) -> None:
    assert (fused_graph / "model.onnx.data").samefile(portable_graph / "model.onnx.data")


def test_call_that_no_fusion_takes_is_an_error_that_names_it(portable_graph: Path, tmp_path: Path) -> None:
    model = load_graph(portable_graph)
    call = next(node for node in model.graph if node.op_type == "SwiGLU")
    call.op_type, call.name = "NewActivation", "layers.0.activation"
    save_graph(model, tmp_path / "graph", share_weights=True)

    with pytest.raises(ValueError, match=r"NewActivation \(layers\.0\.activation\)"):
        fuse_graph(tmp_path / "graph", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fused_graph_is_not_fused_again(fused_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a portable graph"):
        fuse_graph(fused_graph, tmp_path / "out")


def test_fused_graph_calls_no_function(fused_graph: Path) -> None:
    model: ir.Model = load_graph(fused_graph)

    assert not model.functions
    assert {node.domain for node in model.graph} == {"", "com.microsoft"}


def test_portable_graph_that_does_not_say_its_context_is_refused(
    portable_graph: Path, tmp_path: Path
) -> None:
    model = load_graph(portable_graph)
    del model.metadata_props["llama4.max_context"]
    save_graph(model, tmp_path / "graph", share_weights=True)

    with pytest.raises(InputError, match=r"does not say llama4\.max_context; export it again"):
        fuse_graph(tmp_path / "graph", tmp_path / "out")
