"""What a person does in the UI, in a real browser, on the real webserver and daemon."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from llama4_pipeline.orchestration.schedules import NIGHTLY_VARIABLE
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.deployment.processes import MODELS, Deployment

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from llama4_pipeline_tests.deployment.browser import Pages

Interval = tuple[float, float]
Screenshot = Callable[["Page", str], None]
_PLOTS = ("latency", "throughput", "memory")  # the fourth, of quality, needs trained weights


@pytest.fixture
def pages(deployment: Deployment) -> Iterator["Pages"]:
    """A browser on a webserver with its daemon, whose night is half a day away."""
    from llama4_pipeline_tests.deployment.browser import chromium

    later = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
    with (
        deployment.daemon(**{NIGHTLY_VARIABLE: later}),
        deployment.reports(),
        deployment.webserver() as address,
        chromium(address) as opened,
    ):
        yield opened


@pytest.mark.deployment
@pytest.mark.timeout(1800)
def test_materialize_a_partition(
    deployment: Deployment, pages: "Pages", screenshot: Screenshot, tried: list[str]
) -> None:
    places = pages.open_graph()
    edges = [(source, name) for name, stage in STAGES.items() for source in stage.inputs]
    assert [edge for edge in edges if places[edge[0]] >= places[edge[1]]] == [], "reads left to right"

    pages.materialize("tiny")
    [run] = deployment.finished_runs(1, 1200, partition="tiny")
    reused = {name: metadata["reused"] for name, metadata in deployment.materialized(run).items()}
    assert reused == dict.fromkeys(STAGES, False)
    pages.open_run(run.run_id)
    screenshot(pages.page, "run")
    pages.open_graph()
    screenshot(pages.wide, "asset-graph")
    for name in STAGES:
        pages.open_partition(name, "tiny")
        assert pages.page.get_by_text("Unsynced").count() == 0, name
    for name in ("validated_graph", "simplified_graph", "optimized_graph", "benchmarks"):
        pages.page.goto(f"/assets/{name}?view=checks")
        pages.page.get_by_text("Passed", exact=True).first.wait_for()
    screenshot(pages.page, "asset-check")
    pages.open_partition("report", "tiny")
    for plot in _PLOTS:
        picture = pages.show(plot).locator("img")
        assert picture.evaluate("image => image.naturalWidth") > 100
        pages.close_dialog()
    pages.show(_PLOTS[0])
    screenshot(pages.page, "asset-plot")
    pages.close_dialog()
    with pages.page.expect_popup() as opened:
        pages.page.get_by_role("link", name=deployment.environment["LLAMA4_PIPELINE_PAGES"]).click()
    opened.value.get_by_text("PyTorch eager").first.wait_for()
    screenshot(opened.value, "report")
    pages.open_partition("benchmark_table", "tiny")
    table = pages.show("table")
    assert "ONNX Runtime INT4" in table.locator("table").first.inner_text()
    screenshot(pages.page, "asset-table")
    tried.append(
        f"Materialize clicked in Chromium on an empty home: {len(STAGES)} stages ran and are green, {len(edges)} edges "
        "of the graph read left to right, checks passed, plots, table and report shown"
    )


@pytest.mark.deployment
@pytest.mark.timeout(1800)
def test_backfill_two_models(
    deployment: Deployment, pages: "Pages", screenshot: Screenshot, tried: list[str]
) -> None:
    pages.materialize(*MODELS)
    [backfill] = deployment.backfills()
    runs = deployment.finished_runs(len(MODELS), 1200, backfill=backfill)
    assert {run.tags["dagster/partition"] for run in runs} == set(MODELS), "each in a run of its own"
    assert all(run.is_success for run in runs)
    first, second = (deployment.steps(run) for run in runs)
    assert _overlap(*(_whole(steps) for steps in (first, second))), "several runs at once"
    pooled = [
        steps[stage.name] for steps in (first, second) for stage in STAGES.values() if stage.may_use_gpu
    ]
    assert not any(_overlap(*pair) for pair in combinations(pooled, 2)), "one step at a time may use the GPU"
    deployment.wait_for_success(backfill)
    pages.page.goto(f"/runs/b/{backfill}?tab=runs")
    pages.page.get_by_text("Success", exact=True).nth(1).wait_for()
    screenshot(pages.page, "backfill")
    tried.append(
        "backfill of two models from the UI: a run each, at once, one step at a time in the pool gpu"
    )


def _whole(steps: dict[str, Interval]) -> Interval:
    return min(begin for begin, _ in steps.values()), max(end for _, end in steps.values())


def _overlap(one: Interval, other: Interval) -> bool:
    return one[0] < other[1] and other[0] < one[1]
