"""A killed command leaves no run open and no pool slot taken, once the next command has looked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from llama4_pipeline.orchestration.recovery import close_dead_runs, process_tag, recovery

_PROGRAM = """
import time
import dagster as dg
from llama4_pipeline.orchestration.recovery import process_tag

@dg.asset(pool="gpu")
def slow() -> None:
    print("in the slot", flush=True)
    time.sleep(600)

with dg.DagsterInstance.get() as instance:
    dg.materialize([slow], instance=instance, tags=process_tag())
"""


def test_a_killed_run_is_closed_and_its_slot_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "dagster.yaml").write_text((root / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    command = [sys.executable, "-c", _PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == "in the slot\n"
    with dg.DagsterInstance.get() as instance:
        assert close_dead_runs(instance) == [], "the run is alive"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        slots = instance.event_log_storage.get_concurrency_info("gpu")
        assert slots.active_slot_count == 1, "Dagster alone does not notice"

        [closed] = close_dead_runs(instance)
        run = instance.get_run_by_id(closed)
        assert run is not None and run.status is dg.DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        assert close_dead_runs(instance) == []


def test_a_run_that_nobody_is_left_to_watch_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text((Path(__file__).parents[2] / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    with dg.DagsterInstance.get() as instance:
        alive, dead, elsewhere = (_started(instance, pid) for pid in (os.getpid(), gone.pid, None))
        with dg.build_sensor_context(instance=instance) as context:
            assert recovery(context).skip_message == f"closed {dead}"
            assert recovery(context).skip_message == "no run is dead"
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses == {
            alive: dg.DagsterRunStatus.STARTED,
            dead: dg.DagsterRunStatus.FAILURE,
            elsewhere: dg.DagsterRunStatus.STARTED,
        }


def _started(instance: dg.DagsterInstance, pid: int | None) -> str:
    """A run as the code server leaves it when it has started the process."""
    run = instance.create_run_for_job(dg.job(name="empty")(lambda: None), status=dg.DagsterRunStatus.STARTED)
    if pid is not None:
        instance.report_engine_event(
            f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid)
        )
    return run.run_id


def test_a_process_is_told_by_more_than_its_number() -> None:
    [identity] = process_tag().values()
    assert str(os.getpid()) in identity.split("/")
    assert len(identity.split("/")) == 3
