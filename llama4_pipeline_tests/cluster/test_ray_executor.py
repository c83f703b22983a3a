"""What a step asks of a Ray node."""

import pytest

from llama4_pipeline import device
from llama4_pipeline.catalog import find_model
from llama4_pipeline.stages import STAGES

pytestmark = pytest.mark.cluster


def test_a_step_asks_for_what_the_catalog_computes() -> None:
    from llama4_pipeline.orchestration.ray_executor import request_of

    tiny, mini = find_model("tiny"), find_model("mini")
    for stage in STAGES.values():
        request = request_of(stage, mini)
        assert request.num_cpus == 1 and request.num_gpus == 0
        assert request.memory == mini.needs(stage.name).memory_bytes
    baseline = STAGES["pytorch_baseline"]
    assert request_of(baseline, mini).memory > request_of(baseline, tiny).memory


def test_with_cuda_builds_the_measuring_steps_ask_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama4_pipeline.orchestration.ray_executor import request_of

    installed = {"onnxruntime-gpu": "1.32.0", "torch": "2.13.0"}
    monkeypatch.setattr(device, "_version", installed.get)
    model = find_model("mini")
    asking = {stage.name for stage in STAGES.values() if request_of(stage, model).num_gpus == 1}
    assert asking == {"pytorch_baseline", "benchmarks"}
    request = request_of(STAGES["pytorch_baseline"], model)
    assert request.memory == model.needs("pytorch_baseline").on_gpu().memory_bytes
