"""`run`: the whole pipeline on a small random model, again without work, and its errors."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.local_run import run_pipeline
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG

ROOT = Path(__file__).parents[2]
_PROGRAM = """
import json, sys
from llama4_pipeline.orchestration.local_run import run_pipeline
done = run_pipeline("tiny")
print(json.dumps({
    "ran": {stage.stage: stage.why for stage in done.stages if not stage.reused},
    "reused": [stage.stage for stage in done.stages if stage.reused],
    "table": done.table.read_text(),
    "page": done.page.read_text()[:20],
    "heavy": [name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules],
}))
"""


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="tiny"):
        run_pipeline("tinny")


def test_a_wrong_source_fails_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[models.tiny]\nsource = "local:nowhere"\n')
    monkeypatch.setenv("LLAMA4_PIPELINE_CATALOG", str(catalog))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such directory"):
        run_pipeline("tiny")


def test_a_run_draws_a_bar_in_a_terminal(tmp_path: Path) -> None:
    """Inside a step, where Dagster has standard error lead to a file; the run is stopped at its first bar."""
    (tmp_path / "catalog.toml").write_text(CATALOG.format(seed=0))
    settings = {"LLAMA4_PIPELINE_CATALOG": str(tmp_path / "catalog.toml"), "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | settings
    command = [sys.executable, "-m", "llama4_pipeline.cli", "run", "--model", "tiny"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        with suppress(OSError):  # what the end of a terminal is
            while b"] validate graph: " not in shown:
                shown += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert re.search(rb"\r\[[#.]{30}\] validate graph: ", shown), shown.decode()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_pipeline_and_then_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalog.toml").write_text(CATALOG.format(seed=0))
    monkeypatch.setenv("LLAMA4_PIPELINE_CATALOG", str(tmp_path / "catalog.toml"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def run() -> dict[str, object]:
        command = [sys.executable, "-c", _PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        record: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return record

    first = run()
    assert first["ran"] == dict.fromkeys(STAGES, "never built")
    assert "PyTorch eager" in str(first["table"]) and "ONNX Runtime INT4" in str(first["table"])
    assert "random weights" in str(first["table"])
    assert "<!doctype html" in str(first["page"]).lower()
    start = time.monotonic()
    second = run()
    assert second["ran"] == {}
    assert second["heavy"] == []
    assert time.monotonic() - start < 20
