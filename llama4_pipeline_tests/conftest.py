"""Fixtures that more than one room's tests use."""

from pathlib import Path

import pytest

from llama4_pipeline_tests.checkpoints import write_random_checkpoint


@pytest.fixture(scope="session")
def tiny_random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a small Llama 4 with every peculiarity, random float32 weights, a tokenizer."""
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-random")
