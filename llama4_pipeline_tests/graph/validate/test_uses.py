import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.validate.uses import PADDINGS, POSITIONS, USES, Case, make_case, text_cases

TOKENS = range(100)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return make_case(
        draw(st.sampled_from(USES)),
        draw(st.integers(1, 60)),
        draw(st.integers(1, 5)),
        tokens=TOKENS,
        padding=draw(st.sampled_from(PADDINGS)),
        positions=draw(st.sampled_from(POSITIONS)),
        max_context=64,
        seed=draw(st.integers(0, 5)),
    )


@given(cases())
def test_steps_cover_the_length_and_fit_together(case: Case) -> None:
    assert sum(step.sequence for step in case.steps) == case.length
    columns = 0
    for step in case.steps:
        assert step.past == columns
        columns += step.sequence
        assert step.batch == case.batch
        assert step.position_ids.shape == step.input_ids.shape == step.real.shape
        assert np.array_equal(step.attention_mask, case.steps[-1].attention_mask[:, :columns])


@given(cases())
def test_first_row_is_full_and_every_row_has_a_real_token_in_every_step(case: Case) -> None:
    for step in case.steps:
        assert step.real[0].all()
        assert step.real.any(axis=1).all()


@given(cases())
def test_positions_ascend_over_real_tokens_and_stay_in_the_context(case: Case) -> None:
    positions = np.concatenate([step.position_ids for step in case.steps], axis=1)
    real = case.steps[-1].attention_mask != 0
    assert positions.min() >= 0 and positions.max() < 64
    for row in range(case.batch):
        assert (np.diff(positions[row][real[row]]) > 0).all()


def test_padding_is_on_the_side_asked_for() -> None:
    left = make_case("prefill", 30, 4, tokens=TOKENS, padding="left", max_context=64).steps[0]
    right = make_case("prefill", 30, 4, tokens=TOKENS, padding="right", max_context=64).steps[0]

    assert left.real[:, -1].all() and not left.real[:, 0].all()
    assert right.real[:, 0].all() and not right.real[:, -1].all()


def test_second_turn_is_prompt_answer_prompt_answer() -> None:
    sizes = [step.sequence for step in make_case("second turn", 20, 1, tokens=TOKENS, max_context=64).steps]

    assert sizes[1:3] == [1, 1] and sizes[4:] == [1] and sizes[3] > 1


@pytest.mark.parametrize(("length", "batch"), [(0, 1), (65, 1), (5, 0)])
def test_what_does_not_fit_is_refused(length: int, batch: int) -> None:
    with pytest.raises(InputError, match=f"length {length}, batch {batch}"):
        make_case("prefill", length, batch, tokens=TOKENS, max_context=64)


@given(st.integers(0, 200), st.integers(1, 64))
def test_text_cases_hold_every_token_once(length: int, window: int) -> None:
    text = list(range(length))

    steps = [step for case in text_cases(text, window) for step in case.steps]

    assert [int(token) for step in steps for token in step.input_ids[0]] == text
    assert all(step.past == 0 and step.sequence <= window for step in steps)
