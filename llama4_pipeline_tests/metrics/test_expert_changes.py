from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.metrics.expert_changes import ReferenceRouting
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

_DOCUMENTS = [np.random.default_rng(1).integers(3, 131, size=size) for size in (200, 100)]


_CONTEXT = 48  # less than a window has elsewhere


def _fused(checkpoint: Path, out: Path) -> Path:
    export_graph(Checkpoint.open(checkpoint), out / "portable", max_context=_CONTEXT)
    fuse_graph(out / "portable", out / "fused")
    return out / "fused"


def test_rounding_sends_tokens_to_other_experts_and_exact_graphs_do_not(
    tiny_random_checkpoint: Path, tmp_path: Path
) -> None:
    graph = _fused(tiny_random_checkpoint, tmp_path)
    quantize_graph(graph, tmp_path / "int4", precision="int4", method="rtn")
    routing = ReferenceRouting(tiny_random_checkpoint, _DOCUMENTS, _CONTEXT)
    assert routing.change_share(graph) == 0
    share = routing.change_share(tmp_path / "int4")
    assert share is not None and 0.01 < share < 0.6
    assert routing.change_share(graph, "cuda") is None, "a graph made for CUDA is not asked on the CPU"


def test_a_dense_model_has_none(tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "dense", moe_layers=[])
    assert ReferenceRouting(checkpoint, _DOCUMENTS, _CONTEXT).change_share(tmp_path) is None


def test_a_token_of_another_vocabulary_is_refused(tiny_random_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="token id 131, outside the model's vocabulary, 0 to 130"):
        ReferenceRouting(tiny_random_checkpoint, [np.array([1, 131])], _CONTEXT)
