"""The quality that stands in a row of PyTorch is that of its own precision, beside float32."""

from pathlib import Path

import pytest

from llama4_pipeline.builders.quality import with_quality
from llama4_pipeline.data.samples import ClassifySample, SummariseSample, TextSample, write_samples
from llama4_pipeline.metrics.machine import describe_machine
from llama4_pipeline.metrics.measurement import Measurement


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    text = " ".join(f"w{30 + 7 * number % 100}" for number in range(120))
    write_samples([TextSample(text)], tmp_path / "validation.jsonl")
    write_samples([SummariseSample("w60 w61", "w62")], tmp_path / "summarise.jsonl")
    write_samples([ClassifySample("w80", ("w60", "w61"), "w60")], tmp_path / "classify.jsonl")
    return tmp_path


def _judged(checkpoint: Path, datasets: Path, dtype: str) -> Measurement:
    measured = Measurement(
        engine="PyTorch eager",
        precision=dtype,
        device="cpu",
        threads=2,
        machine=describe_machine(),
        prompt_tokens=1,
        new_tokens=2,
    )
    parameters = {"trained": True, "device": "cpu", "dtype": dtype}
    return with_quality(measured, parameters, datasets, checkpoint)


def test_a_half_precision_row_has_its_own_perplexity_and_its_divergence_from_float32(
    tiny_random_checkpoint: Path, datasets: Path
) -> None:
    full = _judged(tiny_random_checkpoint, datasets, "float32")
    half = _judged(tiny_random_checkpoint, datasets, "bfloat16")
    assert full.perplexity is not None and half.perplexity != full.perplexity
    assert half.perplexity == pytest.approx(full.perplexity, rel=0.1)
    assert half.kl_divergence is not None and 0 < half.kl_divergence < 0.1
    assert half.top1_agreement is not None and half.top1_agreement > 0.8
    assert half.accuracy is not None and half.rougeL is not None


def test_float32_is_what_others_are_held_against_and_has_no_divergence(
    tiny_random_checkpoint: Path, datasets: Path
) -> None:
    full = _judged(tiny_random_checkpoint, datasets, "float32")
    assert full.perplexity is not None
    assert full.kl_divergence is None and full.top1_agreement is None
