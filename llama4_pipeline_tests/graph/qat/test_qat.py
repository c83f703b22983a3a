"""Training under rounding brings the rounded graph nearer to the float one, and leaves through export."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.qat import quantize_aware
from llama4_pipeline.graph.qat.training import QatPlan
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.cache import quantize_cache
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session

_TEXT = Calibration(tuple(np.random.default_rng(7).integers(3, 131, 64) for _ in range(8)))
_PLAN = QatPlan(steps=12, rows=4, row_tokens=64, learning_rate=1e-3)


def test_the_trained_graph_diverges_less_than_the_rounded_one(
    checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    report = quantize_aware(
        checkpoint, fused_graph, tmp_path / "qat", precision="int4", calibration=_TEXT, plan=_PLAN
    )
    plain = quantize_graph(fused_graph, tmp_path / "rtn", precision="int4", method="rtn")
    expected = _log_probabilities(fused_graph)
    divergence = {
        name: float((np.exp(expected) * (expected - _log_probabilities(tmp_path / name))).sum(-1).mean())
        for name in ("qat", "rtn")
    }
    assert divergence["qat"] < 0.8 * divergence["rtn"]
    assert report.divergence_before == pytest.approx(divergence["rtn"], rel=0.3)
    assert report.to_json()["bytes_after"] == plain.bytes_after
    assert report.to_json()["method"] == "qat"
    assert {path.name for path in tmp_path.iterdir()} == {"qat", "rtn"}


def test_a_graph_of_another_model_is_refused(fused_graph: Path, tmp_path: Path) -> None:
    other = Checkpoint.open(write_random_checkpoint(tmp_path / "other", moe_layers=[0]))
    with pytest.raises(InputError, match=r"layers\.2\.feed_forward\.experts\.down_proj.*give its own"):
        quantize_aware(other, fused_graph, tmp_path / "out", precision="int4", calibration=_TEXT)


@pytest.mark.parametrize(
    ("convert", "says"),
    [
        (convert_to_float16, "converted is in float16 already: give the float32 graph"),
        (lambda graph, out: quantize_cache(graph, out, _TEXT), "converted has its cache in 8 bits"),
    ],
    ids=["float16", "cache"],
)
def test_a_converted_graph_is_refused_since_training_would_undo_it(
    convert: Callable[[Path, Path], object],
    says: str,
    checkpoint: Checkpoint,
    fused_graph: Path,
    tmp_path: Path,
) -> None:
    convert(fused_graph, tmp_path / "converted")
    with pytest.raises(InputError, match=says):
        quantize_aware(
            checkpoint,
            tmp_path / "converted",
            tmp_path / "out",
            precision="int4",
            calibration=_TEXT,
            plan=_PLAN,
        )


def _log_probabilities(graph: Path) -> np.ndarray:
    session = Session(graph)
    rows = [sequence[None] for sequence in _TEXT.sequences[:4]]
    logits = np.concatenate([session.in_pieces(ids, np.ones_like(ids), [16] * 4) for ids in rows])
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
