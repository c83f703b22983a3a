"""A head that is the embedding's table: in 4 bits each gets bits of its own, in 8 they stay one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.qat import quantize_aware
from llama4_pipeline.graph.qat.fake_quantize import fake_quantized, round_to_nearest
from llama4_pipeline.graph.qat.training import QatPlan
from llama4_pipeline.graph.quantize import preset_schemes, quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.weights import find_weights
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
        Session(tmp_path / "int4").in_pieces(ids, mask, [16, 16, 7, 1]),
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


def test_training_rounds_each_by_its_own_scheme(tied: Checkpoint) -> None:
    schemes = {TABLE: Scheme(8, 32, True), HEAD: Scheme(4, 64, True)}
    model = tied.load_model("float32")
    stored = model.lm_head.weight.detach().clone()
    with fake_quantized(model, schemes):
        rounded = {TABLE: model.model.embed_tokens.weight, HEAD: model.lm_head.weight}
        for name, weight in rounded.items():
            torch.testing.assert_close(weight, round_to_nearest(stored, schemes[name]), rtol=0, atol=1e-7)


def test_a_graph_with_a_head_is_not_a_tied_checkpoints(
    tied: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has lm_head\.weight.*give its own"):
        quantize_aware(tied, fused_graph, tmp_path / "qat", precision="int4", calibration=TEXT)


def test_a_preset_for_separate_heads_refuses_a_tied_table(fused: Path) -> None:
    weights, _ = find_weights(load_graph(fused).graph)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is the head too"):
        preset_schemes(weights, "int4")


def test_the_trained_graph_has_both(tied: Checkpoint, fused: Path, tmp_path: Path) -> None:
    plan = QatPlan(steps=4, rows=2, row_tokens=64, learning_rate=1e-3)
    report = quantize_aware(
        tied, fused, tmp_path / "qat", precision="int4", calibration=TEXT, plan=plan
    ).to_json()
    plain = quantize_graph(fused, tmp_path / "rtn", precision="int4", method="rtn")
    assert report["bytes_after"] == plain.bytes_after
    assert {tensor["name"] for tensor in report["tensors"]} == {tensor.name for tensor in plain.tensors}
