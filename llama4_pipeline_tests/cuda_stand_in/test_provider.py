"""Where CUDA's provider places the nodes of our graphs, and that no kernel of it refuses their shapes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import plan
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.cuda_stand_in.libraries import environment
from llama4_pipeline_tests.cuda_stand_in.probe import STEPS

pytestmark = [pytest.mark.cuda_stand_in, pytest.mark.timeout(1200)]

_WIDE = {  # enough for blocks of 256
    "hidden_size": 512,
    "intermediate_size": 1024,
    "intermediate_size_mlp": 1024,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_KINDS: dict[str, dict[str, Any]] = {"mixture": _WIDE, "dense": _WIDE | {"moe_layers": []}}
_CHUNK = 16  # of the test checkpoints
_ON_LENGTHS = {"Cast": 1, "Min": 2, "Neg": 2, "Squeeze": 2}
"""Length of the context as the operator wants it, that of a chunk, counts of new tokens and of logits."""


@pytest.fixture(scope="module")
def with_cuda() -> dict[str, str]:
    return environment()


@pytest.fixture(scope="module", params=_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("checkpoint") / kind
    return Checkpoint.open(write_random_checkpoint(directory, **_KINDS[kind]))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_node_but_arithmetic_on_lengths_runs_on_cuda(
    precision: Literal["fp16", "int8", "int4"],
    checkpoint: Checkpoint,
    with_cuda: dict[str, str],
    tmp_path: Path,
) -> None:
    graph = _graph(checkpoint, precision, tmp_path / "graph")
    assert json.loads(_probe("placement", graph, with_cuda).stdout) == _ON_LENGTHS


def test_without_chunks_there_is_one_number_less(
    checkpoint: Checkpoint, with_cuda: dict[str, str], tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    export_in_one_stream(checkpoint, graph, form="fused", precision="int8", max_context=_CHUNK, device="cuda")
    assert json.loads(_probe("placement", graph, with_cuda).stdout) == _ON_LENGTHS | {"Min": 1}


def test_larger_blocks_are_what_a_kernel_refuses(
    with_cuda: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which shows that a refusal is seen here."""
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", **_KINDS["dense"]))
    monkeypatch.setattr(plan, "_LARGEST_BLOCK_ON_CUDA", 256)
    graph = _graph(checkpoint, "int4", tmp_path / "graph")
    assert "block size 256 is not supported" in _probe("placement", graph, with_cuda).stderr


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_captured_step_is_one_launch_and_holds_nothing_that_cuda_refuses(
    precision: Literal["fp16", "int8", "int4"], kind: str, with_cuda: dict[str, str], tmp_path: Path
) -> None:
    peculiar = _KINDS[kind] | {"floor_scale": 4096}  # else its temperature counts slots
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", **peculiar))
    graph = _graph(checkpoint, precision, tmp_path / "graph")
    assert json.loads(_probe("steps", graph, with_cuda).stdout) == {
        "graphs_launched": [STEPS, 2 * STEPS, 3 * STEPS],
        "unfit_calls_captured": [0, 0, 0],
    }


def _graph(checkpoint: Checkpoint, precision: Literal["fp16", "int8", "int4"], out: Path) -> Path:
    device: Literal["cpu", "cuda"] = "cpu" if precision == "fp16" else "cuda"
    export_in_one_stream(checkpoint, out, form="fused", precision=precision, max_context=128, device=device)
    return out


def _probe(what: str, graph: Path, with_cuda: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama4_pipeline_tests.cuda_stand_in.probe", what, str(graph)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, env=with_cuda, cwd=root, capture_output=True, text=True, check=False)
