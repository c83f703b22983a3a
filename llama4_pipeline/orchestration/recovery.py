"""Runs whose process was killed are closed, and give up their pool slots.

Dagster's code server does this for the runs it started, as long as it lives itself. A run inside a command is nobody's
child, and after a power cut nobody is left to notice: such a run stays "started", with its slot taken. So each command
looks for them, and so does a sensor.
"""

import platform

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher

PROCESS_TAG = "llama4_pipeline/process"
_UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_STARTED_PROCESS = "Started process for run"


def process_tag() -> dict[str, str]:
    """The tag by which a later command knows whether this process is alive."""
    return {PROCESS_TAG: _identity(psutil.Process())}


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks the runs of dead processes of this machine as failed and frees their pool slots.

    Returns:
        The ids of the runs.
    """
    running = dg.RunsFilter(statuses=_UNDER_WAY)
    closed = []
    for run in instance.get_runs(running):
        if _is_dead(instance, run):
            instance.report_run_failed(run, "the process that ran this was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            closed.append(run.run_id)
    return closed


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes runs whose process was killed together with the code server, so that no pool slot stays taken.",
)
def recovery(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Starts no run itself: Dagster's run retries start a closed run again."""
    closed = close_dead_runs(context.instance)
    return dg.SkipReason(f"closed {', '.join(closed)}" if closed else "no run is dead")


def _is_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run has no process any more; one of another machine counts as alive."""
    identity = run.tags.get(PROCESS_TAG)
    if identity:
        return identity.startswith(f"{platform.node()}/") and not _is_alive(identity)
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return False  # its processes are elsewhere
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.get_dagster_event()
        if (event.message or "").startswith(_STARTED_PROCESS):
            return not _was_there(int(str(event.engine_event_data.metadata["pid"].value)), entry.timestamp)
    return False


def _was_there(pid: int, moment: float) -> bool:
    """Whether the process of that id lives and did so at a moment, in seconds since 1970."""
    try:
        return psutil.Process(pid).create_time() <= moment
    except psutil.NoSuchProcess:
        return False


def _is_alive(identity: str) -> bool:
    pid = int(identity.split("/")[1])
    try:
        return _identity(psutil.Process(pid)) == identity
    except psutil.NoSuchProcess:
        return False


def _identity(process: psutil.Process) -> str:
    """Node, process id and start time: an id alone is used again."""
    return f"{platform.node()}/{process.pid}/{process.create_time():.2f}"
