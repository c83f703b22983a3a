"""Padded rows through the fused graph: the numbers of transformers, in the caller's order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.graph.session import Session, random_ids, reference_logits, relative_error

CHUNK = 16


def test_left_padded_rows_prefill_and_decode(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 44), np.ones((3, 44), np.int64)
    mask[1, :5] = mask[2, :13] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [CHUNK, *[1] * 28])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_right_padded_rows_continue_past_their_padding(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 44), np.ones((3, 44), np.int64)
    mask[1, 11:16] = mask[2, 3:16] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [CHUNK, *[1] * 28])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_holes_in_the_first_prompt(fused_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 3, 30), np.ones((3, 30), np.int64)
    mask[0, 3:9] = mask[1, [0, 1, 5, 14]] = mask[2, 11:16] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, [CHUNK, *[1] * 14])

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_row_in_any_pieces(fused_graph: Path, checkpoint: Checkpoint, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    length = sum(pieces)
    padding = data.draw(st.integers(0, pieces[0] - 1))
    ids, mask = random_ids(checkpoint, 1, length), np.ones((1, length), np.int64)
    mask[0, :padding] = 0

    logits = Session(fused_graph).in_pieces(ids, mask, _within_chunks(pieces, padding))

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


@pytest.mark.parametrize("pieces", [[1, 16], [9, 8], [16, 17], [1, 15, 1, 16]])
def test_a_piece_that_leaves_its_chunk_is_refused(
    fused_graph: Path, checkpoint: Checkpoint, pieces: list[int]
) -> None:
    ids, mask = random_ids(checkpoint, 1, sum(pieces)), np.ones((1, sum(pieces)), np.int64)
    session = Session(fused_graph)

    session.in_pieces(ids[:, : -pieces[-1]], mask[:, : -pieces[-1]], pieces[:-1])
    with pytest.raises(Exception, match="new_tokens_lie_in_one_chunk"):
        session.in_pieces(ids, mask, pieces)


def test_a_chunked_layer_caches_one_chunk_at_most(fused_graph: Path, checkpoint: Checkpoint) -> None:
    session, length = Session(fused_graph), 40
    ids, mask = random_ids(checkpoint, 1, length), np.ones((1, length), np.int64)
    cache = [tensor[:, :, :0] for tensor in session.empty(1)]

    for end in range(1, length + 1):
        _, cache = session.run(ids[:, end - 1 : end], mask[:, :end], cache)

    chunked = [layer.chunk_size is not None for layer in checkpoint.architecture.layers]
    cached = [tensor.shape[2] for tensor in cache[::2]]
    assert cached == [CHUNK if limited else length for limited in chunked]


def _within_chunks(pieces: list[int], padding: int) -> list[int]:
    """The pieces, cut where a chunk ends; chunks count from the first real token."""
    begin, cut = 0, []
    for piece in pieces:
        end = begin + piece
        while begin < end:
            room = CHUNK - max(begin - padding, 0) % CHUNK
            cut.append(min(room, end - begin))
            begin += cut[-1]
    return cut
