"""The nightly schedule, ticked by the real daemon, over two nights."""

import re
import shutil
from datetime import UTC, datetime, timedelta

import dagster as dg
import pandas as pd
import pytest

from llama4_pipeline.orchestration.schedules import NIGHTLY_VARIABLE
from llama4_pipeline.report.history import COMPARED, FEWEST_NIGHTS, read
from llama4_pipeline_tests.deployment.processes import MODELS, Deployment

_BROKEN = (
    '[models.broken]\ndescription = "Its checkpoint is gone"\nsource = "local:nowhere"\nmax_context = 40\n'
)
_MEASURING = {"pytorch_baseline", "benchmarks"}
_PRESENTED = {"benchmark_table", "report"}


@pytest.mark.deployment
@pytest.mark.timeout(2400)
def test_two_nights(deployment: Deployment, tried: list[str]) -> None:
    """Each is a run per nightly model that measures anew and appends; the second rebuilds what was lost, and warns."""
    deployment.write_catalog(more=f"{_BROKEN}nightly = true\nbenchmark.prompt_tokens = 8\n")
    first = _night(deployment)
    assert len(list(deployment.history.glob("*.parquet"))) == len(MODELS)
    _invent_faster_nights(deployment)
    shutil.rmtree(deployment.store.input_of("tiny", "int8_graph").directory)
    second = _night(deployment)
    assert len(pd.read_parquet(deployment.history)["digest"].unique()) == 2 * len(MODELS) + FEWEST_NIGHTS
    done = deployment.materialized(second["tiny"])
    why = {stage: metadata["why"] for stage, metadata in done.items() if not metadata["reused"]}
    assert {stage for stage, reason in why.items() if reason == "measured anew"} == _MEASURING
    assert {stage for stage, reason in why.items() if reason == "artifact deleted"} == {"int8_graph"}
    assert why.keys() - _MEASURING - {"int8_graph"} <= _PRESENTED
    assert deployment.materialized(second["small"])["int8_graph"]["reused"]

    slowed = deployment.checked(second["tiny"])["benchmarks"]
    assert not slowed.passed and not slowed.blocking
    assert f"median of {FEWEST_NIGHTS} nights" in str(slowed.metadata["slower"].value)
    assert "slower than usual: PyTorch eager: " in deployment.logged(second["tiny"])
    assert "data:image/png" in str(slowed.metadata["nights"].value)
    assert "data:image/png" in done["benchmarks"]["nights"]
    assert deployment.checked(second["small"])["benchmarks"].passed
    assert deployment.checked(first["tiny"])["benchmarks"].passed
    tried.append(
        "two nights of the daemon: each model measured anew, what was lost rebuilt and nothing else, a slowdown "
        "flagged, a broken model alone failed"
    )


def _night(deployment: Deployment) -> dict[str, dg.DagsterRun]:
    """Lets the daemon tick the schedule once; returns the runs by model, after a look at what they did."""
    known = deployment.run_ids()
    tick = datetime.now(UTC) + timedelta(minutes=2)
    with deployment.daemon(**{NIGHTLY_VARIABLE: f"{tick.minute} {tick.hour} * * *"}):
        runs = deployment.finished_runs(len(MODELS) + 1, 1500, besides=known, schedule_name="nightly")
    by_model = {run.tags["dagster/partition"]: run for run in runs}
    assert {name: run.status.value for name, run in by_model.items()} == {
        **dict.fromkeys(MODELS, "SUCCESS"),
        "broken": "FAILURE",
    }
    for model in MODELS:
        done = deployment.materialized(by_model[model])
        assert all(done[stage]["reused"] is False for stage in _MEASURING)
        assert re.search("engines, .+, .+ left", deployment.logged(by_model[model])), "progress in the log"
        assert model in set(read(str(deployment.history))["model"])
    return by_model


def _invent_faster_nights(deployment: Deployment) -> None:
    """Puts nights before this one into the history on which `tiny` took a tenth of its time."""
    newest = max(deployment.history.glob("*-tiny-*.parquet"))
    measured = pd.read_parquet(newest)
    for night in range(1, FEWEST_NIGHTS + 1):
        earlier = measured.assign(
            measured_at=measured["measured_at"] - timedelta(days=night),
            digest=f"invented {night}",
            **{figure: measured[figure] / 10 for figure in COMPARED},
        )
        earlier.to_parquet(deployment.history / f"invented-{night}.parquet", index=False)
