"""Initializers against the checkpoint's tensors, turned and packed as a whole."""

import numpy as np
import onnx_ir as ir
import pytest

from llama4_pipeline.graph.packed_weights import graph_tensor
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.synthetic import SyntheticSource
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG

# More columns than are turned at once.
WIDE = {"intermediate_size": 300, "hidden_size": 64, "vocab_size": 1000}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def source(request: pytest.FixtureRequest) -> SyntheticSource:
    return SyntheticSource(Architecture.from_config(PECULIAR_CONFIG | WIDE), 0, request.param)


def test_experts_are_out_major_with_gate_and_up_alternating(source: SyntheticSource) -> None:
    name = "model.layers.0.feed_forward.experts.gate_up_proj"
    gate, up = np.split(source.read(name).astype(np.float32), 2, axis=2)  # [E, H, I] each

    made = graph_tensor(name, (4, 600, 64), source).numpy()

    np.testing.assert_array_equal(made[:, 0::2], gate.transpose(0, 2, 1))
    np.testing.assert_array_equal(made[:, 1::2], up.transpose(0, 2, 1))


def test_down_projections_are_out_major(source: SyntheticSource) -> None:
    name = "model.layers.0.feed_forward.experts.down_proj"

    made = graph_tensor(name, (4, 64, 300), source).numpy()

    np.testing.assert_array_equal(made, source.read(name).astype(np.float32).transpose(0, 2, 1))


def test_linear_weights_are_in_major_and_packed_side_by_side(source: SyntheticSource) -> None:
    block = "model.layers.1.self_attn"
    parts = [source.read(f"{block}.{part}_proj.weight").astype(np.float32).T for part in "qkv"]

    tensor = graph_tensor(f"{block}.qkv_proj.weight", (64, 128), source)

    assert tensor.dtype is ir.DataType.FLOAT
    np.testing.assert_array_equal(tensor.numpy(), np.concatenate(parts, axis=1))
    assert [piece.shape[1] for piece in tensor.pieces()] == [64, 64, 64]  # rows as they lie in the checkpoint


def test_the_embedding_keeps_its_layout(source: SyntheticSource) -> None:
    name = "model.embed_tokens.weight"

    np.testing.assert_array_equal(
        graph_tensor(name, (1000, 64), source).numpy(), source.read(name).astype(np.float32)
    )
