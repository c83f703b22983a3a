"""A head that is the embedding's table: in 4 bits each gets bits of its own, in 8 they stay one."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.qat import quantize_aware
from llama4_pipeline.graph.qat.training import QatPlan
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXT = Calibration(tuple(np.random.default_rng(5).integers(3, 131, 64) for _ in range(8)))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(
        write_random_checkpoint(tmp_path_factory.mktemp("tied") / "checkpoint", tie_word_embeddings=True)
    )


@pytest.fixture(scope="module")
def fused(tied: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tied") / "fused"
    export_in_one_stream(tied, out, form="fused", precision="fp32", max_context=128)
    return out


@pytest.mark.parametrize("method", ["rtn", "gptq", "mixed"])
def test_the_head_has_codes_of_its_own(tied: Checkpoint, fused: Path, tmp_path: Path, method: str) -> None:
    calibration = TEXT if method != "rtn" else None
    report = quantize_graph(
        fused, tmp_path / "int4", precision="int4", method=method, calibration=calibration
    )
    tensors = {tensor.name: tensor for tensor in report.tensors}
    assert tensors[TABLE].operators == ("Gather",)
    assert tensors[HEAD].operators == ("MatMul",)
    assert tensors[HEAD].bytes_before == tensors[TABLE].bytes_before
    if calibration:
        assert tensors[HEAD].tokens == (512,) and not tensors[HEAD].fallbacks
    ids, mask = random_ids(tied, 1, 40), np.ones((1, 40), np.int64)
    logits, expected = (
        Session(tmp_path / "int4").in_pieces(ids, mask, [39, 1]),
        reference_logits(tied, ids, mask),
    )
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.7


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_one_table_of_8_bits_serves_both(fused: Path, tmp_path: Path, method: str) -> None:
    calibration = TEXT if method == "gptq" else None
    report = quantize_graph(
        fused, tmp_path / "int8", precision="int8", method=method, calibration=calibration
    )
    tensors = {tensor.name: tensor for tensor in report.tensors}
    assert tensors[TABLE].operators == ("Gather", "MatMul")
    assert HEAD not in tensors


def test_training_rounds_both(tied: Checkpoint, fused: Path, tmp_path: Path) -> None:
    plan = QatPlan(steps=4, rows=2, row_tokens=64, learning_rate=1e-3)
    report = quantize_aware(
        tied, fused, tmp_path / "qat", precision="int4", calibration=TEXT, plan=plan
    ).to_json()
    plain = quantize_graph(fused, tmp_path / "rtn", precision="int4", method="rtn")
    assert report["bytes_after"] == plain.bytes_after
    assert {tensor["name"] for tensor in report["tensors"]} == {tensor.name for tensor in plain.tensors}
