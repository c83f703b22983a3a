from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error


@pytest.mark.parametrize(("experts", "per_token"), [(1, 1), (5, 2), (4, 4), (128, 1)])
def test_routing(tmp_path: Path, experts: int, per_token: int) -> None:
    checkpoint = Checkpoint.open(
        write_random_checkpoint(
            tmp_path / "checkpoint", num_local_experts=experts, num_experts_per_tok=per_token
        )
    )
    export_graph(checkpoint, tmp_path / "portable", max_context=64)
    report = fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 2, 24), np.ones((2, 24), np.int64)
    reference = reference_logits(checkpoint, ids, mask)

    assert relative_error(Session(tmp_path / "portable").in_pieces(ids, mask, [24]), reference, mask) < 1e-4
    assert relative_error(Session(tmp_path / "fused").in_pieces(ids, mask, [23, 1]), reference, mask) < 1e-4
    assert report.nodes_after["MoE"] == 3 * per_token


def test_choices_share_the_weights(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", num_experts_per_tok=2))
    export_graph(checkpoint, tmp_path / "portable", max_context=64)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")

    moe = [node for node in load_graph(tmp_path / "fused").graph if node.op_type == "MoE"]

    assert moe[0].inputs[2] is moe[1].inputs[2]
