"""A home for each test: what it sees built was built in it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llama4_pipeline_tests.deployment.processes import Deployment

if TYPE_CHECKING:
    from playwright.sync_api import Page


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="Directory for pictures of the UI.")


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "home")


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[["Page", str], None]:
    """Keeps a picture of a page under a name, where --screenshots says so."""
    directory: Path | None = request.config.getoption("--screenshots")

    def keep(page: "Page", name: str) -> None:
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=directory / f"{name}.png", animations="disabled")

    return keep
