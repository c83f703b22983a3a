"""Gathers the outcomes of the drawn trials and writes docs/conformance.md where asked to."""

import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from llama4_pipeline_tests.conformance.summary import Summary

_LIBRARIES = ("transformers", "torch", "onnx", "onnxruntime", "onnxsim")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-page", type=Path, help="write the summary of the conformance suite here")


@pytest.fixture(scope="session")
def summary(request: pytest.FixtureRequest) -> Iterator[Summary]:
    """What all drawn trials of the session showed."""
    start = time.monotonic()
    gathered = Summary()
    yield gathered
    page = request.config.getoption("--conformance-page", default=None)
    if page is not None:
        versions = {library: version(library) for library in _LIBRARIES}
        page.write_text(gathered.to_markdown("make conformance", versions, time.monotonic() - start))
