"""INT8 of a model without experts: its products have zero points, which the kernels have at no cost in 8 bits."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits


@pytest.mark.parametrize("tied", [True, False])
def test_products_with_zero_points_compute_what_pytorch_does(tmp_path: Path, tied: bool) -> None:
    checkpoint = write_random_checkpoint(
        tmp_path / "dense", moe_layers=[], hidden_size=128, tie_word_embeddings=tied
    )
    source, out = Checkpoint.open(checkpoint), tmp_path / "int8"
    export_in_one_stream(source, out, form="fused", precision="int8", max_context=64, method="k_quant")

    products = [node for node in load_graph(out).graph if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * 4 + 1
    assert all(len(node.inputs) == 4 and node.inputs[3] is not None for node in products)
    ids, mask = random_ids(source, 1, 40), np.ones((1, 40), np.int64)
    logits = Session(out).in_pieces(ids, mask, [16, 16, 7, 1])
    assert np.corrcoef(logits.ravel(), reference_logits(source, ids, mask).ravel())[0, 1] > 0.998
