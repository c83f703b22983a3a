"""Dagster's pages in headless Chromium, as a person uses them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

from llama4_pipeline.stages import STAGES

_SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
_PATIENCE_MS = 60_000
# Of a run that has ended: a step whose times the chart does not know yet has a dotted frame.
_STEPS_DRAWN = """() => {
    const steps = [...document.querySelectorAll(".chart-element.box, .chart-element.dot")]
    return steps.length > 2 && steps.every(step => !step.style.border.includes("dotted"))
}"""
_ANIMATION_MS = 3_000
_USUAL = {"width": 1800, "height": 1200}
_USUAL_SCALE = 0.8
_WIDE = {"width": 3000, "height": 1700}  # the whole graph, with what each asset says of itself
_WIDE_SCALE = 0.6


@contextmanager
def chromium(address: str) -> Iterator["Pages"]:
    """A browser on the webserver at an address."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_SWITCHES)
        pages = []
        for view, scale in ((_USUAL, _USUAL_SCALE), (_WIDE, _WIDE_SCALE)):
            pages.append(browser.new_page(viewport=view, device_scale_factor=scale, base_url=address))
            pages[-1].set_default_timeout(_PATIENCE_MS)
        yield Pages(*pages)
        browser.close()


@dataclass(frozen=True)
class Pages:
    """Two tabs: a page of usual size, and one wide enough for the graph."""

    page: Page
    wide: Page

    def open_graph(self) -> dict[str, float]:
        """Opens the asset graph with its groups unfolded; returns how far from the left each asset stands."""
        self.wide.goto("/asset-groups")
        self.wide.locator("foreignObject").first.wait_for()
        self.wide.wait_for_timeout(_ANIMATION_MS)
        nodes = {name: self.wide.locator("foreignObject").get_by_text(name, exact=True) for name in STAGES}
        if nodes["exported_graph"].count() == 0:  # the browser remembers unfolded groups
            self.wide.keyboard.press("Alt+e")  # what the page names as the key for "Expand all groups"
        for node in nodes.values():
            node.first.wait_for()
        self.wide.wait_for_timeout(_ANIMATION_MS)
        # A group may have the name of an asset in it, and begins left of it.
        return {
            name: max((each.bounding_box() or {})["x"] for each in node.all()) for name, node in nodes.items()
        }

    def materialize(self, *models: str) -> None:
        """Clicks Materialize, chooses partitions and launches."""
        self.page.goto("/asset-groups")
        self.page.get_by_role("button", name="Materialize all…").click()
        self.page.get_by_text("Select a partition or create one").click()
        for model in models:
            self.page.get_by_role("menuitem", name=model).click()
        self.page.get_by_text("Launch runs to materialize").click()  # closes the list
        many = len(models) > 1
        self.page.get_by_role("button", name="Launch backfill" if many else "Launch 1 run").click()

    def open_run(self, run_id: str) -> None:
        """Opens the page of a run that succeeded and waits until it is drawn, with a bar for each step."""
        self.page.goto(f"/runs/{run_id}")
        self.page.get_by_text("Success", exact=True).first.wait_for()
        self.page.get_by_text(f"Succeeded ({len(STAGES)})").wait_for()
        self.page.get_by_text("RUN_SUCCESS").wait_for()
        self.page.wait_for_function(_STEPS_DRAWN)

    def open_partition(self, asset: str, model: str) -> None:
        """Opens an asset's page at one partition and waits for its word that it is materialized."""
        self.page.goto(f"/assets/{asset}?view=partitions&partition={model}")
        self.page.get_by_text("Materialized", exact=True).first.wait_for()

    def show(self, metadata: str) -> Locator:
        """Opens a Markdown entry of the metadata on this page; returns what is shown."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_text(metadata, exact=True))
        row.get_by_text("[Show Markdown]").click()
        shown = self.page.get_by_role("dialog").last
        shown.locator(".dagster-markdown").wait_for()
        return shown

    def close_dialog(self) -> None:
        """Closes what `show` opened."""
        self.page.get_by_role("button", name="Close").click()
