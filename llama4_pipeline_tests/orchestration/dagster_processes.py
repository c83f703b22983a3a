"""Dagster as a user runs it: a home, a daemon, runs that the daemon launches."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil

ROOT = Path(__file__).parents[2]
_FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


class DagsterProcesses:
    """A Dagster home with the project's settings, and the processes that work in it."""

    def __init__(self, home: Path, settings: Path, environment: Mapping[str, str]) -> None:
        """Makes the home.

        Args:
            home: A directory that does not exist yet.
            settings: Becomes the home's dagster.yaml.
            environment: Variables for the processes, beside those of this one.
        """
        home.mkdir()
        (home / "dagster.yaml").write_text(settings.read_text())
        self.home = home
        self.environment = {**os.environ, **environment, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.instance().dispose()  # makes the databases: two processes that do it at once disturb each other

    @contextmanager
    def running(self) -> Iterator[None]:
        """A daemon, until the end; then no process of it is left."""
        self.start_daemon()
        try:
            yield
        finally:
            self.stop()

    def start_daemon(self) -> None:
        """Starts the daemon, which launches queued runs and watches them."""
        with (self.home / "daemon.log").open("a") as log:
            self.daemon = subprocess.Popen(
                self._dagster("dagster._daemon", "run", "-w", "workspace.yaml"),
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Ends every process that works in the home."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.daemon:
            self.daemon.wait()

    def processes(self) -> list[psutil.Process]:
        """Every living process that has this home."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]

    def instance(self) -> dg.DagsterInstance:
        """The instance of the home, to look at."""
        return dg.DagsterInstance.from_config(str(self.home))

    def launch(self, model: str) -> str:
        """Queues a run of the pipeline for a model, as the UI does; returns its id."""
        run_id = str(uuid.uuid4())
        tags = json.dumps({"dagster/partition": model})
        command = self._dagster("dagster", "job", "launch", "-w", "workspace.yaml", "-j", "pipeline")
        command += ["--tags", tags, "--run-id", run_id]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return run_id

    def wait_for(self, run_id: str, seconds: float) -> dg.DagsterRunStatus:
        """Waits for the end of a run; returns how it ended."""
        deadline = time.monotonic() + seconds
        with self.instance() as instance:
            while time.monotonic() < deadline:
                run = instance.get_run_by_id(run_id)
                assert run is not None
                if run.status in _FINISHED:
                    return run.status
                time.sleep(1)
            raise TimeoutError(f"run {run_id} is {run.status} after {seconds:.0f} s: {self.failures(run_id)}")

    def wait_for_all(self, seconds: float) -> list[str]:
        """Waits until no run is queued or under way, retries included; returns the ids of all, the oldest first."""
        deadline = time.monotonic() + seconds
        with self.instance() as instance:
            while time.monotonic() < deadline:
                runs = instance.get_runs()
                if not any(map(_is_under_way, runs)):
                    return [run.run_id for run in reversed(runs)]
                time.sleep(1)
        raise TimeoutError(f"runs are under way after {seconds:.0f} s")

    def failures(self, run_id: str) -> str:
        """What failed in a run, for a message."""
        with self.instance() as instance:
            events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
        failed = [event for event in events if event.is_failure]
        return "\n".join(f"{event.message} {event.event_specific_data}" for event in failed)

    def code_servers(self) -> list[psutil.Process]:
        """The processes that the daemon has load the definitions and start runs."""
        return [process for process in self.processes() if "grpc" in command_of(process)]

    def _dagster(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_under_way(run: dg.DagsterRun) -> bool:
    """Whether it runs, or will be started again by Dagster's run retries."""
    will_retry = run.tags.get("dagster/will_retry") == "true" and "dagster/auto_retry_run_id" not in run.tags
    return run.status not in _FINISHED or will_retry


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("DAGSTER_HOME")
    except psutil.Error:
        return None
