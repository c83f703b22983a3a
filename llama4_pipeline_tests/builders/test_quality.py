"""The quality that stands in a row of PyTorch is that of its own precision, beside float32."""

from pathlib import Path

import pytest

from llama4_pipeline.builders.quality import with_quality
from llama4_pipeline.data.samples import ClassifySample, SummariseSample, TextSample, write_samples
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.machine import describe_machine
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline_tests.checkpoints import write_random_checkpoint


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    text = " ".join(f"w{30 + 7 * number % 100}" for number in range(120))
    write_samples([TextSample(text)], tmp_path / "validation.jsonl")
    write_samples([SummariseSample("w60 w61", "w62")], tmp_path / "summarise.jsonl")
    write_samples([ClassifySample("w80", ("w60", "w61"), "w60")], tmp_path / "classify.jsonl")
    return tmp_path


def _judged(
    checkpoint: Path, datasets: Path, graph: Path | None = None, max_context: int = 64
) -> Measurement:
    measured = Measurement(
        engine="an engine",
        precision="its own",
        device="cpu",
        threads=2,
        machine=describe_machine(),
        prompt_tokens=1,
        new_tokens=2,
    )
    parameters = {"trained": True, "device": "cpu", "max_context": max_context}
    inputs = {"checkpoint": checkpoint, "datasets": datasets}
    if graph is None:
        return with_quality(measured, parameters, inputs)
    return with_quality(measured, parameters, inputs | {"a_graph": graph}, "a_graph")


def test_a_checkpoint_stored_in_half_precision_is_judged_in_it_beside_float32(
    tmp_path: Path, datasets: Path
) -> None:
    dense = {"moe_layers": []}  # experts run in float32 on a processor without kernels for them
    full = _judged(write_random_checkpoint(tmp_path / "full", **dense), datasets)
    half = _judged(write_random_checkpoint(tmp_path / "half", dtype="bfloat16", **dense), datasets)
    assert full.perplexity is not None and half.perplexity != full.perplexity
    assert half.perplexity == pytest.approx(full.perplexity, rel=0.1)
    assert half.kl_divergence is not None and 0 < half.kl_divergence < 0.1
    assert half.top1_agreement is not None and half.top1_agreement > 0.8
    assert half.accuracy is not None and half.rougeL is not None


def test_float32_is_what_others_are_held_against_and_has_no_divergence(
    tiny_random_checkpoint: Path, datasets: Path
) -> None:
    full = _judged(tiny_random_checkpoint, datasets)
    assert full.perplexity is not None
    assert full.kl_divergence is None and full.top1_agreement is None


def test_pytorch_and_an_exact_graph_have_one_perplexity_where_the_graph_serves_a_shorter_context(
    tiny_random_checkpoint: Path, datasets: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    checkpoint = Checkpoint.open(tiny_random_checkpoint)
    export_in_one_stream(checkpoint, graph, form="fused", precision="fp32", max_context=64)
    exact, original = (_judged(tiny_random_checkpoint, datasets, judged) for judged in (graph, None))
    assert exact.perplexity == pytest.approx(original.perplexity, rel=1e-5)
