"""Fixtures that more than one room's tests use."""

from pathlib import Path

import pytest

from llama4_pipeline_tests.checkpoints import write_random_checkpoint

_TRIED: list[str] = []


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
