"""Engines in processes of their own: the record comes back, a death is told with its last words."""

import sys
import time
from pathlib import Path
from threading import Timer

import psutil
import pytest

import llama4_pipeline
from llama4_pipeline.catalog import find_model
from llama4_pipeline.errors import CheckFailed
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline.metrics.isolated import BenchRequest, last_line, measure_isolated
from llama4_pipeline.runtime import engines


def request(checkpoint: Path, **fields) -> BenchRequest:
    short = {"prompt_tokens": 9, "new_tokens": 5, "batch": (1, 2), "repeats": 1, "threads": 1}
    return BenchRequest(engine="pytorch", model="tiny", checkpoint=checkpoint, **(short | fields))


def test_the_record_of_the_other_process(tiny_random_checkpoint):
    measurement = measure_isolated(request(tiny_random_checkpoint))
    assert (measurement.model, measurement.engine, measurement.threads) == ("tiny", "PyTorch eager", 1)
    assert list(measurement.throughput) == [1, 2]
    assert measurement.peak_memory_bytes > measurement.model_bytes


def test_an_engine_that_is_missing_is_a_row_with_the_reason(tiny_random_checkpoint):
    row = measure_isolated(
        BenchRequest(engine="tensorrt-llm", model="tiny", checkpoint=tiny_random_checkpoint, dtype="float16")
    )
    assert row.engine == "TensorRT-LLM"
    assert "not installed" in row.unavailable
    assert row.decode_latency_ms is None


def test_a_graph_that_cannot_run_here_keeps_its_name(tiny_random_checkpoint, tmp_path, monkeypatch):
    export_in_one_stream(
        Checkpoint.open(tiny_random_checkpoint), tmp_path, form="fused", precision="int8", max_context=64
    )
    monkeypatch.setattr(engines, "first_gpu", lambda: None)
    row = measure_isolated(
        BenchRequest(engine="onnxruntime", model="tiny", graph=tmp_path, dtype="float16", device="cuda")
    )
    assert "no NVIDIA GPU" in row.unavailable
    assert (row.engine, row.precision) == ("ONNX Runtime INT8", "int8")


def test_a_model_that_does_not_fit_is_a_row_with_the_figures(tmp_path):
    write_synthetic_checkpoint(tmp_path, find_model("maverick").config, seed=0, dtype="bfloat16")
    row = measure_isolated(request(tmp_path))
    assert row.unavailable.startswith("its weights take 1,603 GB, ")
    parameters = find_model("maverick").architecture.parameters()
    assert row.short_of_memory_bytes == 4 * parameters
    assert (row.engine, row.precision) == ("PyTorch eager", "float32")
    row = measure_isolated(request(tmp_path, dtype="bfloat16"))
    assert row.short_of_memory_bytes == 2 * parameters
    assert (row.engine, row.precision) == ("PyTorch eager BF16", "bfloat16")  # as the row of one that fits


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(
        CheckFailed, match=r"bench of pytorch on tiny failed with exit status 2: .*config\.json"
    ):
        measure_isolated(request(tmp_path))


def test_a_process_that_is_killed_is_told(tiny_random_checkpoint):
    killed = request(tiny_random_checkpoint, repeats=100_000)
    killer = Timer(8, lambda: [child.kill() for child in psutil.Process().children()])
    killer.start()
    with pytest.raises(CheckFailed, match="bench of pytorch on tiny ended by SIGKILL"):
        measure_isolated(killed)


def test_a_process_does_not_outlive_the_one_that_measures():
    """A stage that is killed and started again would measure beside it."""
    code = "from llama4_pipeline.metrics.isolated import last_line; last_line(['sleep', '600'], 'sleep')"
    measuring = psutil.Popen([sys.executable, "-c", code])
    while not (found := measuring.children()):
        assert measuring.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.1)
    measuring.kill()
    measuring.wait()
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(CheckFailed, match=r"sleep took more than 1 s"):
        last_line(["sleep", "60"], "sleep", limit_seconds=1)


def test_what_a_process_started_ends_with_it():
    """It holds the same pipe, which would be read for as long as it lives."""
    start = time.monotonic()
    with pytest.raises(CheckFailed, match=r"shell took more than 1 s"):
        last_line(["sh", "-c", "sleep 60; true"], "shell", limit_seconds=1)
    assert time.monotonic() - start < 30


def test_words_that_are_no_text_hold_nothing_up():
    code = r"import sys; sys.stderr.buffer.write(b'caf\xe9\n' * 100_000); print('done')"
    assert last_line([sys.executable, "-c", code], "child", limit_seconds=20) == "done"


@pytest.mark.parametrize("own", ["", "glibc.malloc.arena_max=2"])
def test_the_other_process_asks_for_huge_pages_beside_what_the_user_set(monkeypatch, own):
    monkeypatch.setenv("GLIBC_TUNABLES", own)
    said = last_line([sys.executable, "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"], "tunables")
    assert said.split(":") == [*filter(None, [own]), "glibc.malloc.hugetlb=1"]


def test_the_other_process_runs_our_code_whatever_lies_in_the_users_directory(tmp_path, monkeypatch):
    """Another clone, say: its code would be measured, and kept under the key of ours."""
    (tmp_path / "llama4_pipeline").mkdir()
    (tmp_path / "llama4_pipeline" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    code = "import llama4_pipeline; print(llama4_pipeline.__file__)"
    assert last_line([sys.executable, "-c", code], "import") == llama4_pipeline.__file__
