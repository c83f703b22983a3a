"""The real webserver and daemon on a fresh home, and what a test asks of them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline_tests.assets.conftest import CATALOG

ROOT = Path(__file__).parents[2]
MODELS = ("tiny", "small")
"""Two small models with random weights; `tiny` is the nightly one of the package's catalog, made smaller."""
_WORKSPACE = ("-w", "workspace.yaml")
_POLL_SECONDS = 1.0

Found = TypeVar("Found")


@dataclass
class Deployment:
    """A home with its catalog and store; processes on it live as long as their `with`."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        (self.home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        self.write_catalog()
        self.environment |= {
            "DAGSTER_HOME": str(self.home),
            "LLAMA4_PIPELINE_ARTIFACTS": str(self.store.root),
            "LLAMA4_PIPELINE_CATALOG": str(self.home / "catalog.toml"),
            "LLAMA4_PIPELINE_PAGES": f"http://127.0.0.1:{_free_port()}",
            "PYTHONPATH": str(ROOT),
        }
        with self.instance() as instance:  # makes the databases; two processes at once would be one too many
            assert instance.run_storage and instance.event_log_storage and instance.schedule_storage

    @property
    def store(self) -> Store:
        return Store(self.home / "artifacts")

    @property
    def history(self) -> Path:
        return self.store.root / "history"

    def write_catalog(self, more: str = "") -> None:
        tables = [
            CATALOG.format(seed=seed).replace("models.tiny", f"models.{name}") + "\n"
            for seed, name in enumerate(MODELS)
        ]
        described = tables[1].replace(
            'source = "random"', 'source = "random"\nnightly = true\ndescription = "Another"'
        )
        (self.home / "catalog.toml").write_text(f"{tables[0]}{described}{more}")

    @contextmanager
    def daemon(self, **environment: str) -> Iterator[None]:
        """The daemon: queue, schedules, backfills, run monitoring."""
        with self._process("dagster._daemon", "run", *_WORKSPACE, environment=environment):
            yield

    @contextmanager
    def webserver(self) -> Iterator[str]:
        """The webserver, once it answers; gives its address."""
        port = _free_port()
        with self._process("dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *_WORKSPACE):
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: _answers(f"{address}/server_info"), "the webserver", 120)
            yield address

    @contextmanager
    def reports(self) -> Iterator[None]:
        """The server of the reports that the assets link to."""
        port = self.environment["LLAMA4_PIPELINE_PAGES"].rpartition(":")[2]
        with self._process("llama4_pipeline.cli", "pages", "--port", port):
            wait_for(lambda: _answers(self.environment["LLAMA4_PIPELINE_PAGES"]), "the reports", 60)
            yield

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """What the processes wrote down of runs and assets."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def run_ids(self) -> set[str]:
        """The runs so far."""
        with self.instance() as instance:
            return {run.run_id for run in instance.get_runs()}

    def finished_runs(
        self, count: int, seconds: float, besides: Container[str] = (), **tags: str
    ) -> list[dg.DagsterRun]:
        """Waits for so many runs with these tags, besides known ones, to end; returns them, the newest first."""
        chosen = dg.RunsFilter(tags={f"dagster/{name}": value for name, value in tags.items()})
        with self.instance() as instance:

            def ended() -> list[dg.DagsterRun]:
                runs = [run for run in instance.get_runs(chosen) if run.run_id not in besides]
                return runs if len(runs) == count and all(run.is_finished for run in runs) else []

            return wait_for(ended, f"the end of {count} runs", seconds)

    def backfills(self) -> list[str]:
        """Waits for the daemon to see backfills; returns their ids."""
        with self.instance() as instance:
            return wait_for(lambda: [each.backfill_id for each in instance.get_backfills()], "a backfill", 60)

    def wait_for_success(self, backfill: str) -> None:
        """Waits for the daemon to note that a backfill is complete."""
        with self.instance() as instance:
            wait_for(
                lambda: instance.get_backfill(backfill).status is BulkActionStatus.COMPLETED_SUCCESS,
                f"the success of backfill {backfill}",
                120,
            )

    def steps(self, run: dg.DagsterRun) -> dict[str, tuple[float, float]]:
        """When each step of a run began and ended."""
        with self.instance() as instance:
            return {
                step.step_key: (step.start_time, step.end_time)
                for step in instance.get_run_step_stats(run.run_id)
            }

    def logged(self, run: dg.DagsterRun) -> str:
        """The log of a run, as the UI shows it."""
        with self.instance() as instance:
            return "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))

    def materialized(self, run: dg.DagsterRun) -> dict[str, dict[str, Any]]:
        """The metadata of each asset that a run materialized."""
        with self.instance() as instance:
            events = [
                entry.get_dagster_event().step_materialization_data.materialization
                for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            ]
        return {
            each.asset_key.path[-1]: {name: value.value for name, value in each.metadata.items()}
            for each in events
        }

    def checked(self, run: dg.DagsterRun) -> dict[str, dg.AssetCheckEvaluation]:
        """The check of each asset that a run evaluated."""
        with self.instance() as instance:
            events = [
                entry.get_dagster_event().asset_check_evaluation_data
                for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            ]
        return {each.asset_key.path[-1]: each for each in events}

    def command(self, *arguments: str) -> str:
        """Runs a command of Dagster to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "dagster", *arguments, *_WORKSPACE],
            cwd=ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def _process(self, module: str, *arguments: str, environment: Mapping[str, str] = {}) -> Iterator[None]:
        with (self.home / f"{module}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=os.environ | self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield
        finally:
            with ExitStack() as last:
                last.callback(_kill_group, process.pid)
                os.killpg(process.pid, signal.SIGTERM)  # SIGINT is ignored below a background shell
                process.wait(60)


def wait_for(question: Callable[[], Found], what: str, seconds: float) -> Found:
    """Asks until the answer is true; fails with the name of what did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"{what} did not come within {seconds:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
