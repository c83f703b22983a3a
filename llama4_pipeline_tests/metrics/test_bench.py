"""`bench` on real engines: every figure is there, and they agree with each other."""

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.metrics import bench as bench_module
from llama4_pipeline.metrics.bench import bench
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.runtime.engines import EngineUnavailable
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

SHORT = {"prompt_tokens": 9, "new_tokens": 5, "batch": (1, 2), "repeats": 1, "threads": 1}


def check(measurement: Measurement) -> None:
    assert measurement.unavailable is None
    assert measurement.decode_tokens_per_second == pytest.approx(1000 / measurement.decode_latency_ms.p50)
    assert list(measurement.throughput) == [1, 2]
    assert measurement.peak_memory_bytes > measurement.model_bytes
    assert measurement.load_seconds > 0
    bandwidth = measurement.machine.read_bandwidth_bytes_per_second
    least = 1000 * measurement.active_bytes_per_token / bandwidth
    assert measurement.roofline_share == pytest.approx(least / measurement.decode_latency_ms.p50)
    assert Measurement.model_validate_json(measurement.model_dump_json()) == measurement


def test_pytorch(tiny_random_checkpoint):
    measurement = bench(engine="pytorch", checkpoint=tiny_random_checkpoint, **SHORT)
    check(measurement)
    assert (measurement.engine, measurement.precision) == ("PyTorch eager", "float32")
    assert measurement.model == tiny_random_checkpoint.name
    half = bench(engine="pytorch", checkpoint=tiny_random_checkpoint, dtype="bfloat16", **SHORT)
    assert half.engine == "PyTorch eager BF16"
    assert half.active_bytes_per_token == measurement.active_bytes_per_token // 2


def test_the_model_file_is_that_of_the_checkpoint_whatever_type_it_runs_in(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path, dtype="bfloat16")
    measurement = bench(engine="pytorch", checkpoint=checkpoint, dtype="float32", **SHORT)
    (file,) = checkpoint.glob("*.safetensors")
    assert 0 <= file.stat().st_size - measurement.model_bytes < 16_384  # its header


def test_onnxruntime(tiny_random_checkpoint, tmp_path):
    export_graph(Checkpoint.open(tiny_random_checkpoint), tmp_path / "portable", max_context=64)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    measurement = bench(engine="onnxruntime", graph=tmp_path / "fused", model="tiny", **SHORT)
    check(measurement)
    assert (measurement.engine, measurement.model) == ("ONNX Runtime FP32", "tiny")
    assert measurement.providers["CPUExecutionProvider"] > 50


def test_a_graph_without_its_configuration_is_refused_before_it_is_measured(
    tiny_random_checkpoint, tmp_path, monkeypatch
):
    export_graph(Checkpoint.open(tiny_random_checkpoint), tmp_path / "graph", max_context=64)
    (tmp_path / "graph" / "config.json").unlink()
    monkeypatch.setattr(bench_module, "measure_decoder", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(InputError, match=r"no config\.json"):
        bench(engine="onnxruntime", graph=tmp_path / "graph", **SHORT)


def test_what_cannot_run_raises(tiny_random_checkpoint, tmp_path):
    with pytest.raises(EngineUnavailable, match="TensorRT-LLM cannot run here: "):
        bench(engine="tensorrt-llm", checkpoint=tiny_random_checkpoint)
    with pytest.raises(InputError, match=r"model\.onnx does not exist"):
        bench(engine="onnxruntime", graph=tmp_path)
