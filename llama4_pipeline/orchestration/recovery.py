"""Runs whose process was killed are closed, and give up their pool slots.

Dagster's code server does this for the runs it started, as long as it lives itself. A run inside a command is nobody's
child, and after a power cut nobody is left to notice: such a run stays "started", with its slot taken. So each command
looks for them, and so does a sensor. A process id means something on its own machine only: every run is tagged with the
machine that started it, and no other machine judges it.
"""

import platform

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext

PROCESS_TAG = "llama4_pipeline/process"
_UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_STARTED_PROCESS = "Started process for run"
_CLOCK_STEP_SECONDS = 60.0  # what a clock may be put right by while a run is under way


def process_tag() -> dict[str, str]:
    """The tag by which a later command knows whether this process is alive."""
    return {PROCESS_TAG: _identity(psutil.Process())}


class TaggingRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher, named in dagster.yaml; a run says on which machine its process is."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Tags the run and starts its process."""
        self._instance.add_run_tags(context.dagster_run.run_id, {PROCESS_TAG: platform.node()})
        super().launch_run(context)


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks the runs that this machine started and whose process is dead as failed, and frees their pool slots.

    One that was being cancelled is marked as that, so that nothing starts it again.

    Returns:
        The ids of the runs.
    """
    running = dg.RunsFilter(statuses=_UNDER_WAY)
    closed = []
    for run in instance.get_runs(running):
        if _is_dead(instance, run):
            if run.status is dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "the process that was to end this was killed")
            else:
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
    """Whether a run of this machine has no process any more; one of another machine counts as alive."""
    identity = run.tags.get(PROCESS_TAG, "")
    node, _, process = identity.partition("/")
    if node != platform.node():
        return False
    if process:
        return not _is_copied(instance, run) and not _is_alive(identity)
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.get_dagster_event()
        if (event.message or "").startswith(_STARTED_PROCESS):
            return not _was_there(int(str(event.engine_event_data.metadata["pid"].value)), entry.timestamp)
    return False


def _is_copied(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the tag is of the run that this one repeats: Dagster copies tags, our launcher alone replaces this."""
    parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return parent is not None and parent.tags.get(PROCESS_TAG) == run.tags[PROCESS_TAG]


def _was_there(pid: int, moment: float) -> bool:
    """Whether the process of that id lives and did so at a moment, in seconds since 1970."""
    try:
        process = psutil.Process(pid)
        return not _is_zombie(process) and process.create_time() <= moment + _CLOCK_STEP_SECONDS
    except psutil.NoSuchProcess:
        return False


def _is_alive(identity: str) -> bool:
    pid = int(identity.split("/")[1])
    try:
        process = psutil.Process(pid)
        return not _is_zombie(process) and _identity(process) == identity
    except psutil.NoSuchProcess:
        return False


def _is_zombie(process: psutil.Process) -> bool:
    """Dead, and left in the process table by a parent that does not look."""
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def _identity(process: psutil.Process) -> str:
    """Node, process id and start time: an id alone is used again.

    The start counts from the boot, as the kernel keeps it: a clock that is put right moves the hour of both.
    """
    return f"{platform.node()}/{process.pid}/{process.create_time() - psutil.boot_time():.2f}"
