"""Runs of the command line that were killed are closed, and give up their pool slots.

Dagster's run monitoring does this for runs that the webserver or the daemon launched. A run inside a command is
nobody's child: it stays "started", with its slot taken, when the command is killed.
"""

import platform

import dagster as dg
import psutil

PROCESS_TAG = "llama4_pipeline/process"


def process_tag() -> dict[str, str]:
    """The tag by which a later command knows whether this process is alive."""
    return {PROCESS_TAG: _identity(psutil.Process())}


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks the runs of dead processes of this machine as failed and frees their pool slots.

    Returns:
        The ids of the runs.
    """
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    closed = []
    for run in instance.get_runs(running):
        identity = run.tags.get(PROCESS_TAG)
        if identity and identity.startswith(f"{platform.node()}/") and not _is_alive(identity):
            instance.report_run_failed(run, "the command that ran this was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            closed.append(run.run_id)
    return closed


def _is_alive(identity: str) -> bool:
    pid = int(identity.split("/")[1])
    try:
        return _identity(psutil.Process(pid)) == identity
    except psutil.NoSuchProcess:
        return False


def _identity(process: psutil.Process) -> str:
    """Node, process id and start time: an id alone is used again."""
    return f"{platform.node()}/{process.pid}/{process.create_time():.2f}"
