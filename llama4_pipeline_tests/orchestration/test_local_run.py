"""`run`: the whole pipeline on a small random model, again without work, and its errors."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.local_run import run_pipeline
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.assets.test_safety import SECRETS, leaks

ROOT = Path(__file__).parents[2]
_AGAIN = """
import json, sys
from llama4_pipeline.orchestration.local_run import run_pipeline
done = run_pipeline("tiny")
print(json.dumps({
    "ran": [stage.stage for stage in done.stages if not stage.reused],
    "heavy": [name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules],
}))
"""


@dataclass(frozen=True)
class Whole:
    """A run of every stage from a terminal: where, with which settings, what it returned and what it showed."""

    directory: Path
    environment: Mapping[str, str]
    stages: list[dict[str, str]]
    shown: bytes

    def latest(self, pattern: str) -> Path:
        [file] = (self.directory / "artifacts" / "tiny").glob(pattern)
        return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """With secrets in the environment; home, store, history and logs lie in one directory."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "catalog.toml").write_text(CATALOG.format(seed=0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "LLAMA4_"))}
    settings = {"LLAMA4_PIPELINE_CATALOG": str(directory / "catalog.toml"), "PYTHONPATH": str(ROOT)}
    environment = kept | settings | SECRETS
    command = [sys.executable, "-m", "llama4_pipeline.cli", "run", "--model", "tiny", "--json"]
    ours, theirs = pty.openpty()
    shown = b""
    with (directory / "said.json").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=theirs, cwd=directory, env=environment)
        os.close(theirs)
        try:
            with suppress(OSError):  # what the end of a terminal is
                while more := os.read(ours, 4096):
                    shown += more
            status = process.wait()
        finally:  # the test may run out of time
            process.kill()
            process.wait()
            os.close(ours)
    assert status == 0, shown[-4000:].decode(errors="replace")
    (directory / "shown").write_bytes(shown)
    record = json.loads((directory / "said.json").read_text().splitlines()[-1])
    return Whole(directory, environment, record["stages"], shown)


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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("telemetry: [", "line 1, column 13"),
        ("telemetri: {enabled: false}", 'unexpected config entry "telemetri"'),
        ("storage: {postgres: {postgres_url: {env: NOT_SET}}}", "dagster_postgres|NOT_SET"),
        ("storage: {sqlite: {base_dir: /proc/nowhere}}", "/proc/nowhere"),
    ],
)
def test_a_home_that_cannot_be_opened_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, says: str
) -> None:
    (tmp_path / "dagster.yaml").write_text(settings)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"home {tmp_path} cannot be opened \(.*({says}).*DAGSTER_HOME to"):
        run_pipeline("tiny")


@pytest.mark.timeout(900)
def test_a_run_makes_every_stage(whole: Whole) -> None:
    assert {each["stage"]: each["why"] for each in whole.stages} == dict.fromkeys(STAGES, "never built")
    table = whole.latest("benchmark_table/*/benchmark.md").read_text()
    assert "PyTorch eager" in table and "ONNX Runtime INT4" in table and "random weights" in table
    assert "<!doctype html" in whole.latest("report/*/report.html").read_text()[:20].lower()


@pytest.mark.timeout(900)
def test_a_run_draws_a_bar_in_a_terminal(whole: Whole) -> None:
    """Inside a step too, where Dagster has standard error lead to a file."""
    assert re.search(rb"\r\[[#.]{30}\] validate graph: ", whole.shown)


@pytest.mark.timeout(900)
def test_a_run_neither_says_nor_keeps_a_secret(whole: Whole) -> None:
    assert (whole.directory / ".dagster_home").is_dir()
    assert (whole.directory / "artifacts" / "history").is_dir()
    assert leaks(whole.directory) == []


@pytest.mark.timeout(900)
def test_a_second_run_does_nothing_and_imports_nothing_heavy(whole: Whole) -> None:
    command = [sys.executable, "-c", _AGAIN]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=whole.directory, env=whole.environment, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"ran": [], "heavy": []}
