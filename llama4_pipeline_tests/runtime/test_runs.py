"""How tokens are cut for a fused graph: all real ones, in order, never across a chunk's end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.runtime.runs import cut, need_cutting


@given(
    row=st.lists(st.integers(0, 1), min_size=1, max_size=60).filter(any),
    longest=st.integers(1, 20),
    chunk_size=st.integers(1, 20),
    data=st.data(),
)
def test_every_real_token_is_in_one_run(row: list[int], longest: int, chunk_size: int, data: st.DataObject):
    new = data.draw(st.integers(1, len(row)))
    mask, past, first = np.array(row), len(row) - new, row.index(1)

    runs = cut(mask, new, longest, chunk_size)

    fed = [past + column for begin, end in runs for column in range(begin, end)]
    assert fed == [slot for slot in range(past, len(row)) if row[slot]]
    assert all(end - begin <= longest for begin, end in runs)
    chunks = [{(past + column - first) // chunk_size for column in range(*run)} for run in runs]
    assert all(len(chunk) == 1 for chunk in chunks)
    for begin, end in runs:
        assert not need_cutting(mask[None, : past + end], end - begin, longest, chunk_size)


@pytest.mark.parametrize(
    ("rows", "new", "needed"),
    [
        (["xxxxxxxx"], 8, False),
        (["xxxxxxxxx"], 9, True),  # leaves the chunk of 8
        (["xxxxxxxxxx"], 2, False),
        (["xxxxxxxxx"], 2, True),
        (["..xxxxxxxxxx"], 2, False),  # chunks begin at the first real token
        (["..xxxxxxxxx"], 2, True),
        (["xxxx", "..xx"], 4, False),
        (["xxxx", "x.xx"], 4, True),  # padding between tokens
        (["xxxx", "xxxx"], 2, True),  # a batch behind a cache
        (["xxxxxxxxx", "xxxxxxxxx"], 1, False),  # one token a row is always taken
    ],
)
def test_what_the_graph_takes_whole_is_not_cut(rows: list[str], new: int, needed: bool):
    mask = np.array([[int(mark == "x") for mark in row] for row in rows])
    assert need_cutting(mask, new, longest=64, chunk_size=8) is needed
