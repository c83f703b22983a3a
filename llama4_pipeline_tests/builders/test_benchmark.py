"""The rows of the benchmarks: each engine's speed of now, and the quality that was found for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama4_pipeline.builders import benchmark
from llama4_pipeline.builders.measurements import read_measurements, write_measurements
from llama4_pipeline.builders.quality import FIGURES
from llama4_pipeline.metrics import isolated
from llama4_pipeline.metrics.isolated import BenchRequest
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline_tests.report.conftest import invent

_PERPLEXITY = {"optimized_graph": 20.0, "int8_graph": 21.0, "int4_graph": 22.0}


def _measured(asked: BenchRequest) -> Measurement:
    if asked.engine == "tensorrt-llm":
        return asked.unavailable("not installed")
    return invent(asked.engine, asked.dtype, 100.0, 1, **dict.fromkeys(FIGURES))


def _judged(
    measured: Measurement, parameters: Mapping[str, Any], inputs: Mapping[str, Path], graph: str
) -> Measurement:
    return measured.model_copy(update={"perplexity": _PERPLEXITY[graph]})


def test_pytorchs_speed_is_taken_again_and_its_quality_is_the_baselines(
    tiny_random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "measure_isolated", _measured)
    monkeypatch.setattr(benchmark, "with_quality", _judged)
    inputs = {name: tmp_path / name for name in ("pytorch_baseline", *_PERPLEXITY)}
    inputs["pytorch_baseline"].mkdir()
    write_measurements([invent("pytorch", "float32", 150.0, 1)], inputs["pytorch_baseline"])
    plan = {"prompt_tokens": 128, "new_tokens": 64, "batch_sizes": [1], "repeats": 3}
    parameters = {"model": "tiny", "device": "cpu", "benchmark": plan, "trained": True, "max_context": 64}
    facts = benchmark.build(inputs | {"checkpoint": tiny_random_checkpoint}, parameters, tmp_path)
    pytorch, *graphs, tensorrt = read_measurements(tmp_path)
    assert pytorch == invent("pytorch", "float32", 100.0, 1)
    assert [graph.perplexity for graph in graphs] == [20.0, 21.0, 22.0]
    assert tensorrt.perplexity is None
    assert facts["left_out"] == {tensorrt.engine: "not installed"}
