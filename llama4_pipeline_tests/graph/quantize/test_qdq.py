"""ONNX Runtime's own quantizer: the graph runs, and what was left out is said."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.qdq import quantize_with_ort
from llama4_pipeline.methods import QDQ_DYNAMIC, QDQ_STATIC
from llama4_pipeline_tests.graph.session import Session

_TEXT = Calibration(tuple(np.random.default_rng(7).integers(3, 131, 40) for _ in range(4)))


@pytest.mark.parametrize("method", [QDQ_DYNAMIC, QDQ_STATIC])
def test_linear_weights_are_rounded_and_experts_are_said_to_be_left(
    method: str, fused_graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = quantize_with_ort(fused_graph, tmp_path, method=method, calibration=_TEXT)
    names = {tensor.name for tensor in report.tensors}
    assert {
        "model.embed_tokens.weight",
        "model.layers.3.self_attn.qkv_proj.weight",
        "lm_head.weight",
    } <= names
    assert all(0 < tensor.relative_error[0] < 0.02 for tensor in report.tensors)
    for layer in (0, 2, 3):
        stack = f"model.layers.{layer}.feed_forward.experts.down_proj"
        assert report.stayed_float[stack] == "ONNX Runtime's quantizer has no form of MoE"
        assert stack in caplog.text
        assert "router" in report.stayed_float[f"model.layers.{layer}.feed_forward.router.weight"]
    initializers = load_graph(tmp_path).graph.initializers
    assert report.stayed_float.keys() <= initializers.keys()
    assert {"attention.temperature", "model.norm.weight"} <= report.stayed_float.keys()
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert size < 0.8 * (fused_graph / "model.onnx.data").stat().st_size
    expected, got = (_logits(graph) for graph in (fused_graph, tmp_path))
    assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.98


def test_half_precision_is_refused_where_activations_are_measured_anew(
    fused_graph: Path, tmp_path: Path
) -> None:
    """DynamicQuantizeLinear takes float32 only, and the graph would not load."""
    convert_to_float16(fused_graph, tmp_path / "half")
    with pytest.raises(InputError, match=r"qdq-dynamic .* float16: give the float32 graph"):
        quantize_with_ort(tmp_path / "half", tmp_path / "out", method=QDQ_DYNAMIC)
    assert not (tmp_path / "out").exists()


def _logits(graph: Path) -> np.ndarray:
    ids = _TEXT.sequences[0][None]
    return Session(graph).in_pieces(ids, np.ones_like(ids), [16, 16, 8])
