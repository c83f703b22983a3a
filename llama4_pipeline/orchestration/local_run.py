"""`llama4-pipeline run`: the whole pipeline for one model through Dagster, inside this process.

In process, because a run that reuses everything then takes seconds instead of a process start per stage. Peaks of
memory stay apart all the same: what is measured runs in processes of its own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy.exc import OperationalError

from llama4_pipeline.artifacts.location import open_store
from llama4_pipeline.catalog import find_model
from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.orchestration.home import dagster_home, open_instance
from llama4_pipeline.orchestration.recovery import close_dead_runs, process_tag
from llama4_pipeline.progress import terminal_kept

_logger = logging.getLogger(__name__)
# The events of a run are in the instance; on the terminal the stages speak for themselves.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class StageRun:
    """What a run did about a stage."""

    stage: str
    reused: bool
    why: str
    path: str


@dataclass(frozen=True)
class PipelineRun:
    """A finished run: its stages in the order they came, and where table and page are."""

    model: str
    run_id: str
    stages: tuple[StageRun, ...]
    table: Path
    page: Path


def run_pipeline(model: str) -> PipelineRun:
    """Materializes every stage for a model of the catalog; what is unchanged is reused.

    Args:
        model: Name in the catalog.

    Raises:
        InputError: No such model, a bad source, or a Dagster home that cannot be used.
        CheckFailed: A graph does not match PyTorch, or a measurement died; what was built before stays.
    """
    find_model(model)
    with (
        dagster_home() as home,
        _naming_lost_records(home),
        open_instance(home) as instance,
        _plain_messages(),
        terminal_kept(),
    ):
        from llama4_pipeline.definitions import defs

        for run_id in close_dead_runs(instance):
            _logger.warning("closed run %s, whose process was killed", run_id)
        result = defs.resolve_job_def("pipeline").execute_in_process(
            run_config=_QUIET, instance=instance, partition_key=model, tags=process_tag()
        )
        store = open_store()
    stages = tuple(_stage_run(event) for event in result.get_asset_materialization_events())
    return PipelineRun(
        model=model,
        run_id=result.run_id,
        stages=stages,
        table=store.input_of(model, "benchmark_table").directory / "benchmark.md",
        page=store.input_of(model, "report").directory / "report.html",
    )


@contextmanager
def _naming_lost_records(home: Path) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:  # a full disk, or a database that is gone or locked
        raise InputError(
            f"Dagster's records of {home} cannot be written ({one_line(error.orig or error)}): make room, or set "
            "DAGSTER_HOME to another directory"
        ) from error


@contextmanager
def _plain_messages() -> Iterator[None]:
    """Takes the run's id and step from the front of messages that Dagster captured on their way to a terminal."""

    def restore(record: logging.LogRecord) -> bool:
        captured = getattr(record, "dagster_meta", None)
        if captured:
            record.msg = captured["orig_message"]
        return True

    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(restore)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(restore)


def _stage_run(event: dg.DagsterEvent) -> StageRun:
    materialization = event.step_materialization_data.materialization
    metadata: dict[str, Any] = {name: value.value for name, value in materialization.metadata.items()}
    return StageRun(
        stage=materialization.asset_key.path[-1],
        reused=metadata["reused"],
        why=metadata["why"],
        path=metadata["path"],
    )
