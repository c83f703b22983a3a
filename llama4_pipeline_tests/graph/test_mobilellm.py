"""The shape of the small published checkpoints: dense, RoPE in every layer, tied embeddings, nine heads on three."""

from pathlib import Path

import numpy as np

from llama4_pipeline.catalog import find_model
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error


def test_mobilellm_r1_equals_transformers(tmp_path: Path) -> None:
    config = find_model("mobilellm-r1-140m").config
    shape = config | {
        "num_hidden_layers": 2,
        "vocab_size": 1003,
        "no_rope_layers": [1, 1],
        "layer_types": None,
    }
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", **shape))
    architecture = checkpoint.architecture
    assert architecture.tie_word_embeddings
    assert all(layer.uses_rope and not layer.experts for layer in architecture.layers)
    export_graph(checkpoint, tmp_path / "portable", max_context=128)
    fuse_graph(tmp_path / "portable", tmp_path / "fused")
    ids, mask = random_ids(checkpoint, 2, 40), np.ones((2, 40), np.int64)
    mask[1, :7] = 0
    reference = reference_logits(checkpoint, ids, mask)

    for form in ("portable", "fused"):
        logits = Session(tmp_path / form).in_pieces(ids, mask, [16, *[1] * 24])
        assert relative_error(logits, reference, mask) < 1e-4, form
