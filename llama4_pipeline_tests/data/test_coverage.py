"""Calibration text is exchanged until every expert has its share, as far as there is text that reaches it."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.data.coverage import ExpertShares

_LAYERS, _EXPERTS = 2, 3
_LEAST = 0.1


class Table:
    """Counts that are written down; the texts are the numbers of its rows."""

    experts = tuple((layer, expert) for layer in range(_LAYERS) for expert in range(_EXPERTS))

    def __init__(self, counts: Sequence[Sequence[int]]) -> None:
        self._counts = np.array(counts)

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return self._counts[[int(text) for text in texts]]


def _covering(counts: Sequence[Sequence[int]], drawn: Sequence[int]) -> tuple[list[int], ExpertShares]:
    shares = ExpertShares(Table(counts), _LEAST)
    return shares.covering([str(row) for row in range(len(counts))], drawn), shares


_ROW = st.lists(st.integers(0, 20), min_size=_LAYERS * _EXPERTS, max_size=_LAYERS * _EXPERTS)


@given(st.lists(_ROW, min_size=2, max_size=12), st.data())
def test_an_exchange_keeps_the_number_and_starves_nobody(
    counts: list[list[int]], data: st.DataObject
) -> None:
    rows = st.sets(st.integers(0, len(counts) - 1), min_size=1)
    drawn = sorted(data.draw(rows))
    found, shares = _covering(counts, drawn)
    assert len(set(found)) == len(drawn) and found == sorted(found)
    before, after = (set(shares.coverage([str(row) for row in each]).starved) for each in (drawn, found))
    assert after <= before
    assert before or found == drawn


def test_texts_that_reach_a_starved_expert_take_the_place_of_others() -> None:
    common, rare = [20, 20, 0, 20, 20, 20], [10, 10, 20, 20, 20, 20]
    counts = [common] * 6 + [rare] * 4
    found, shares = _covering(counts, [0, 1, 2, 3, 4, 5])
    assert shares.coverage([str(row) for row in found]).starved == ()
    assert len(set(found) & {6, 7, 8, 9}) == 2, "no more than it takes"


def test_an_expert_that_no_text_reaches_is_named_with_its_tokens() -> None:
    found, shares = _covering([[5, 5, 0, 5, 5, 5]] * 4, [0, 2])
    assert found == [0, 2]
    coverage = shares.coverage(["0", "2"])
    assert coverage.starved == ((0, 2),)
    assert coverage.tokens == {0: [10, 10, 0], 1: [10, 10, 10]}
