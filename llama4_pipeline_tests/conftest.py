"""Fixtures that more than one room's tests use."""

import os
from pathlib import Path

import pytest

from llama4_pipeline_tests.checkpoints import write_random_checkpoint

_TRIED: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Gives each process of `pytest -n` a core of its own, where no other's spinning threads hold it up."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def tiny_random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a small Llama 4 with every peculiarity, random float32 weights, a tokenizer."""
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-random")


@pytest.fixture
def tried() -> list[str]:
    """Takes lines about what a long test tried, for the end of the output."""
    return _TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was tried."""
    for line in _TRIED:
        terminalreporter.write_line(f"tried: {line}")
