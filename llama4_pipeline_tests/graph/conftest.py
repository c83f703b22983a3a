"""The small random checkpoint, exported once for all tests of this room."""

from pathlib import Path

import pytest

from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint

MAX_CONTEXT = 128


@pytest.fixture(scope="session")
def checkpoint(tiny_random_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_random_checkpoint)


@pytest.fixture(scope="session")
def portable_graph(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("portable")
    export_graph(checkpoint, out, max_context=MAX_CONTEXT)
    return out


@pytest.fixture(scope="session")
def fused_graph(portable_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fused")
    fuse_graph(portable_graph, out)
    return out
