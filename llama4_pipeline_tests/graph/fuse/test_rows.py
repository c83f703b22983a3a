"""Padded rows through the fused graph: the numbers of transformers, in the caller's order."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error


def test_left_padded_rows_prefill_and_decode(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 44), np.ones((3, 44), np.int64)
    mask[1, :5] = mask[2, :19] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [24, *[1] * 20])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_right_padded_rows_continue_past_their_padding(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 44), np.ones((3, 44), np.int64)
    mask[1, 17:24] = mask[2, 3:24] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [24, *[1] * 20])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_holes_in_the_first_prompt(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 30), np.ones((3, 30), np.int64)
    mask[0, 3:9] = mask[1, [0, 1, 5, 20]] = mask[2, 11:24] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [24, *[1] * 6])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_row_in_any_pieces(fused_graph: Path, checkpoint: Checkpoint, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    length = sum(pieces)
    padding = data.draw(st.integers(0, pieces[0] - 1))
    ids, mask = random_ids(checkpoint, 1, length), np.ones((1, length), np.int64)
    mask[0, :padding] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, pieces)

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4
