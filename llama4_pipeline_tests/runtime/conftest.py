"""The engines under test, on one small random model: transformers, and ONNX Runtime on both forms of the graph."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline.runtime.pytorch import PyTorchDecoder

MAX_CONTEXT = 600


@pytest.fixture(scope="session")
def portable_graph(tiny_random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("portable")
    export_graph(Checkpoint.open(tiny_random_checkpoint), out, max_context=MAX_CONTEXT)
    return out


@pytest.fixture(scope="session")
def fused_graph(portable_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fused")
    fuse_graph(portable_graph, out)
    return out


@pytest.fixture(scope="session")
def _reference(tiny_random_checkpoint: Path) -> PyTorchDecoder:
    return PyTorchDecoder(Checkpoint.open(tiny_random_checkpoint), threads=1, compiled=False)


@pytest.fixture
def reference(_reference: PyTorchDecoder) -> PyTorchDecoder:
    """transformers eager, its cache empty."""
    _reference.reset()
    return _reference


@pytest.fixture(scope="session")
def _opened(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Decoder]]:
    opened: dict[str, Decoder] = {}

    def open_once(name: str) -> Decoder:
        if name not in opened:
            opened[name] = (
                request.getfixturevalue("_reference")
                if name == "pytorch"
                else OrtDecoder(request.getfixturevalue(f"{name}_graph"), threads=1)
            )
        opened[name].reset()
        return opened[name]

    yield open_once


@pytest.fixture(params=["portable", "fused"])
def graph_decoder(request: pytest.FixtureRequest, _opened: Callable[[str], Decoder]) -> Decoder:
    """ONNX Runtime on each form of the graph, its cache empty."""
    return _opened(request.param)


@pytest.fixture(params=["pytorch", "portable", "fused"])
def decoder(request: pytest.FixtureRequest, _opened: Callable[[str], Decoder]) -> Decoder:
    """Each engine, its cache empty."""
    return _opened(request.param)
