"""A killed command leaves no run open and no pool slot taken, once the next command has looked."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import LaunchRunContext

from llama4_pipeline.orchestration.recovery import PROCESS_TAG, close_dead_runs, process_tag, recovery
from llama4_pipeline_tests.orchestration.dagster_processes import ROOT, DagsterProcesses

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
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    command = [sys.executable, "-c", _PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
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
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = {PROCESS_TAG: platform.node()}
    with dg.DagsterInstance.get() as instance:
        alive, dead, elsewhere = (_started(instance, pid, here) for pid in (os.getpid(), gone.pid, None))
        with dg.build_sensor_context(instance=instance) as context:
            assert recovery(context).skip_message == f"closed {dead}"
            assert recovery(context).skip_message == "no run is dead"
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses == {
            alive: dg.DagsterRunStatus.STARTED,
            dead: dg.DagsterRunStatus.FAILURE,
            elsewhere: dg.DagsterRunStatus.STARTED,
        }


def test_a_process_that_nobody_buried_is_dead() -> None:
    """A container's first process may leave the dead in the process table."""
    zombie = subprocess.Popen(["true"])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with dg.DagsterInstance.ephemeral() as instance:
        run = _started(instance, zombie.pid, {PROCESS_TAG: platform.node()})
        assert close_dead_runs(instance) == [run]
    zombie.wait()


def test_a_dead_run_that_was_being_cancelled_is_not_started_again() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with dg.DagsterInstance.ephemeral() as instance:
        cancelled = _started(
            instance, gone.pid, {PROCESS_TAG: platform.node()}, status=dg.DagsterRunStatus.CANCELING
        )
        assert close_dead_runs(instance) == [cancelled]
        run = instance.get_run_by_id(cancelled)
        assert run is not None and run.status is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize(
    "tags", [{PROCESS_TAG: "another-machine"}, {PROCESS_TAG: "another-machine/1/2.00"}, {}]
)
def test_a_run_of_another_machine_is_left_alone(tags: dict[str, str]) -> None:
    """Machines that share a database share no process ids; who started an untagged run is not known."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    with dg.DagsterInstance.ephemeral() as instance:
        _started(instance, gone.pid, tags)
        assert close_dead_runs(instance) == []


def test_a_dead_commands_tag_says_nothing_of_the_run_that_repeats_it() -> None:
    """The UI copies tags; a launcher other than ours leaves them."""
    gone = subprocess.Popen(["true"])
    dead = {PROCESS_TAG: f"{platform.node()}/{gone.pid}/1.00"}
    gone.wait()
    with dg.DagsterInstance.ephemeral() as instance:
        first = _started(instance, None, dead)
        again = _started(instance, os.getpid(), dead, parent=first)
        assert close_dead_runs(instance) == [first]
        run = instance.get_run_by_id(again)
        assert run is not None and run.status is dg.DagsterRunStatus.STARTED


def test_a_launched_run_names_its_machine(tmp_path: Path) -> None:
    dagster = DagsterProcesses(tmp_path / "home", ROOT / "dagster.yaml", {})
    with dagster.instance() as instance:
        run_id = _started(instance, None, {})
        run = instance.get_run_by_id(run_id)
        assert run is not None
        with pytest.raises(dg.DagsterInvariantViolationError, match="workspace"):
            instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        tagged = instance.get_run_by_id(run_id)
        assert tagged is not None and tagged.tags[PROCESS_TAG] == platform.node()


def test_a_process_is_known_after_the_clock_was_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    before = process_tag()
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted + 3600)
    assert process_tag() == before


def _started(
    instance: dg.DagsterInstance,
    pid: int | None,
    tags: dict[str, str],
    parent: str | None = None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> str:
    """A run as the code server leaves it when it has started the process."""
    empty = dg.job(name="empty")(lambda: None)
    run = instance.create_run_for_job(
        empty, status=status, tags=tags, parent_run_id=parent, root_run_id=parent
    )
    if pid is not None:
        instance.report_engine_event(
            f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid)
        )
    return run.run_id


def test_a_process_is_told_by_more_than_its_number() -> None:
    [identity] = process_tag().values()
    assert str(os.getpid()) in identity.split("/")
    assert len(identity.split("/")) == 3
