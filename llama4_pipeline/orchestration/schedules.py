"""What happens by itself."""

import os
from collections.abc import Iterator

import dagster as dg

from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.jobs import pipeline_job
from llama4_pipeline.orchestration.materialization import MEASURE_ANEW
from llama4_pipeline.orchestration.partitions import MODELS

NIGHTLY_VARIABLE = "LLAMA4_PIPELINE_NIGHTLY"
"""Environment variable for another hour, in cron's five fields, UTC."""


def _time_of_night() -> str:
    time = os.environ.get(NIGHTLY_VARIABLE) or "0 2 * * *"
    try:
        dg.ScheduleDefinition(name="nightly", job=pipeline_job, cron_schedule=time)
    except dg.DagsterInvalidDefinitionError as error:
        raise InputError(
            f"{NIGHTLY_VARIABLE}={time!r} is no time: give cron's five fields, as in '30 23 * * *'"
        ) from error
    return time


@dg.schedule(
    job=pipeline_job,
    cron_schedule=_time_of_night(),
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night a run per model marked nightly: rebuilds what changed, measures anew. On by default.",
)
def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run per model, so that a failure of one leaves the others alone.

    The catalog is read anew at every tick, but a model is a partition from the next load of the definitions on.
    """
    names = [model.name for model in load_catalog().values() if model.nightly]
    loaded = [name for name in names if MODELS.has_partition_key(name)]
    night = context.scheduled_execution_time.isoformat(timespec="minutes")
    for name in names:
        if name in loaded:
            yield dg.RunRequest(run_key=f"{night}-{name}", partition_key=name, tags=MEASURE_ANEW)
        else:
            context.log.warning(
                f"{name} came into the catalog after its definitions were loaded: Reload them in the UI"
            )
    if not loaded:
        yield dg.SkipReason("no loaded model of the catalog has nightly = true")
