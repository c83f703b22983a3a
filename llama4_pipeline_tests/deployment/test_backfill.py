"""A backfill over models from the command line, and the retry of the one that failed."""

import dagster as dg
import pytest

from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.deployment.processes import Deployment

_LATE = CATALOG.format(seed=2).replace("models.tiny]", 'models.late]\ndescription = "Fails late at first"', 1)
_BEHIND_INT8 = {"int8_graph", "benchmarks", "benchmark_table", "report"}


@pytest.mark.deployment
@pytest.mark.timeout(1800)
def test_a_failed_partition_is_retried_alone(deployment: Deployment, tried: list[str]) -> None:
    deployment.write_catalog(more=_LATE.replace("models.tiny.config", "models.late.config"))
    shelf = deployment.store.root / "late" / "int8_graph"
    shelf.parent.mkdir(parents=True)
    shelf.write_text("a file where the store wants a directory")

    with deployment.daemon():
        runs = _backfill(deployment, "tiny", "late")
        assert runs["tiny"].is_success and not runs["late"].is_success
        assert set(deployment.materialized(runs["tiny"])) == set(STAGES)
        assert set(deployment.materialized(runs["late"])) == STAGES.keys() - _BEHIND_INT8

        shelf.unlink()
        again = _backfill(deployment, "late")["late"]
    assert again.is_success
    done = deployment.materialized(again)
    assert {stage for stage, metadata in done.items() if not metadata["reused"]} == _BEHIND_INT8
    tried.append(
        "backfill of two models from the command line, one fails; its retry alone reuses what was done"
    )


def _backfill(deployment: Deployment, *models: str) -> dict[str, dg.DagsterRun]:
    """Runs the documented command; returns the run of each model once all have ended."""
    said = deployment.command(
        "job", "backfill", "-j", "pipeline", "--partitions", ",".join(models), "--noprompt"
    )
    backfill = said.split("Launched backfill job `")[1].split("`")[0]
    runs = deployment.finished_runs(len(models), 1200, backfill=backfill)
    return {run.tags["dagster/partition"]: run for run in runs}
