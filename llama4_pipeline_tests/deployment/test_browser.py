"""What a person does in the UI, in a real browser, on the real webserver and daemon."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import combinations, pairwise
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
_WORKFLOW = (
    "checkpoint", "exported_graph", "validated_graph", "simplified_graph", "optimized_graph", "int4_graph",
    "benchmarks", "benchmark_table", "report",
)  # fmt: skip
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
    assert all(places[left] < places[right] for left, right in pairwise(_WORKFLOW)), "reads left to right"

    known = deployment.run_ids()
    pages.materialize("tiny")
    [run] = deployment.finished_runs(1, 1200, besides=known, partition="tiny")
    pages.page.goto(f"/runs/{run.run_id}")
    pages.page.get_by_text("Success", exact=True).first.wait_for()
    pages.page.get_by_text(f"Succeeded ({len(STAGES)})").wait_for()
    pages.page.get_by_text("RUN_SUCCESS").wait_for()
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
    with pages.page.expect_popup() as opened:
        pages.page.get_by_role("link", name=deployment.environment["LLAMA4_PIPELINE_PAGES"]).click()
    opened.value.get_by_text("PyTorch eager").first.wait_for()
    pages.open_partition("benchmark_table", "tiny")
    table = pages.show("table")
    assert "ONNX Runtime INT4" in table.locator("table").first.inner_text()
    screenshot(pages.page, "asset-table")
    tried.append(
        f"Materialize clicked in Chromium: {len(STAGES)} assets green, checks passed, plots and table shown"
    )


@pytest.mark.deployment
@pytest.mark.timeout(1800)
def test_backfill_two_models(
    deployment: Deployment, pages: "Pages", screenshot: Screenshot, tried: list[str]
) -> None:
    with deployment.instance() as instance:
        known = {backfill.backfill_id for backfill in instance.get_backfills()}
    pages.materialize(*MODELS)
    [backfill] = deployment.new_backfills(known)
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
