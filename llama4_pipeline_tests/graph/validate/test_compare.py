import numpy as np
import pytest

from llama4_pipeline.graph.validate.compare import StepComparison, Tolerance, beyond, chosen_experts, measure
from llama4_pipeline.graph.validate.probes import Probe, StepValues
from llama4_pipeline.graph.validate.uses import Step

OUTPUT = Probe("layers.0.output", 0, "output")
ROUTER = Probe("layers.0.router_logits", 0, "router_logits")


def test_figures_are_of_the_real_tokens_only() -> None:
    expected = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    got = expected.copy()
    got[1, 2] += 100
    compared = np.ones((2, 3), bool)
    compared[1, 2] = False

    assert measure(OUTPUT, expected, got, compared).error == 0
    compared[1, 2] = True
    found = measure(OUTPUT, expected, got, compared)
    assert found.worst == (1, 2)
    assert found.error == pytest.approx(100 / expected.std(), rel=1e-5)


def test_error_is_relative_to_the_standard_deviation() -> None:
    expected = np.random.default_rng(0).normal(scale=7, size=(1, 50, 64)).astype(np.float32)

    found = measure(OUTPUT, expected, expected + np.float32(0.07), np.ones((1, 50), bool))

    assert found.error == pytest.approx(0.01, rel=0.02)


def test_nan_and_infinity_are_beyond_every_bound() -> None:
    expected = np.ones((1, 2, 4), np.float32)
    for wrong in (np.nan, np.inf):
        found = measure(OUTPUT, expected, np.full_like(expected, wrong), np.ones((1, 2), bool))
        assert beyond(found, Tolerance()) is not None
        assert found.cosine == -1


def test_a_single_number_and_zeros_have_figures() -> None:
    one = np.full((1, 1, 1), 3.0, np.float32)
    assert measure(ROUTER, one, one * np.float32(1 + 1e-6), np.ones((1, 1), bool)).error < 1e-4
    zeros = np.zeros((1, 1, 4), np.float32)
    assert beyond(measure(OUTPUT, zeros, zeros, np.ones((1, 1), bool)), Tolerance()) is None


def test_chosen_experts_are_those_with_the_highest_logits() -> None:
    assert chosen_experts(np.array([0.1, 3.0, -1.0, 2.0]), 2).tolist() == [1, 3]


def step_of(tokens: int) -> Step:
    return Step(np.zeros((1, tokens), np.int64), np.ones((1, tokens), np.int64), np.arange(tokens)[None])


def test_a_tie_of_experts_leaves_the_later_tokens_of_the_row_out() -> None:
    logits = np.array([[[5.0, 1.0], [2.0, 2.0 - 1e-7], [1.0, 5.0], [4.0, 0.0]]], np.float32)
    other = logits.copy()
    other[0, 1] = other[0, 1, ::-1]
    output = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32)
    wrong = output.copy()
    wrong[0, 1:] += 3
    comparison = StepComparison((ROUTER, OUTPUT), experts_per_token=1, exact=True)

    figures, changes = comparison.compare(
        step_of(4),
        StepValues({ROUTER.name: logits, OUTPUT.name: output}),
        StepValues({ROUTER.name: other, OUTPUT.name: wrong}),
    )

    assert (changes[0].ties, changes[0].changed) == (1, 0)
    assert figures[1].error == 0
    assert np.isnan(figures[1].token_error[0, 1:]).all()


def test_a_row_that_was_left_out_stays_out() -> None:
    """One has nothing but padding in between, one follows a step later; the third is compared all along."""
    comparison = StepComparison((ROUTER, OUTPUT), experts_per_token=1, exact=True)
    output = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    mask = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 1]])

    def compare(number: int, tied_row: int | None, wrong_rows: list[int]) -> np.ndarray:
        logits = np.tile(np.float32([5, 1]), (3, 1, 1))
        other, wrong = logits.copy(), output.copy()
        if tied_row is not None:
            logits[tied_row], other[tied_row] = [2, 2 - 1e-7], [2 - 1e-7, 2]
        wrong[wrong_rows] += 3
        step = Step(np.zeros((3, 1), np.int64), mask[:, : number + 1], np.full((3, 1), number))
        figures, _ = comparison.compare(
            step,
            StepValues({ROUTER.name: logits, OUTPUT.name: output}),
            StepValues({ROUTER.name: other, OUTPUT.name: wrong}),
        )
        return figures[1].token_error[:, 0]

    np.testing.assert_array_equal(compare(0, tied_row=0, wrong_rows=[0]), [np.nan, 0, 0])
    np.testing.assert_array_equal(compare(1, tied_row=1, wrong_rows=[0, 1]), [np.nan, np.nan, 0])
    np.testing.assert_array_equal(compare(2, tied_row=None, wrong_rows=[0, 1]), [np.nan, np.nan, 0])


def test_a_clear_change_of_expert_is_counted_and_compared() -> None:
    logits = np.array([[[5.0, 1.0], [2.0, 1.0]]], np.float32)
    other = logits[..., ::-1].copy()
    comparison = StepComparison((ROUTER,), experts_per_token=1, exact=True)

    figures, changes = comparison.compare(
        step_of(2), StepValues({ROUTER.name: logits}), StepValues({ROUTER.name: other})
    )

    assert (changes[0].tokens, changes[0].changed, changes[0].ties) == (2, 2, 0)
    assert beyond(figures[0], Tolerance()) is not None
