"""Sampling against transformers' own filters, and against the probabilities it should draw with."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.runtime.sampling import GREEDY, Sampler, Sampling, candidates


def probabilities_of_transformers(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    scores = TemperatureLogitsWarper(sampling.temperature)(None, torch.from_numpy(logits).double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1).numpy()


def probabilities_of_ours(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    tokens, weights = candidates(logits, sampling)
    spread = np.zeros(logits.shape)
    np.put_along_axis(spread, tokens, weights, axis=1)
    return spread / spread.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([1, 7, 300, 3000]),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 1, 5, 299, 5000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
def test_filters_are_those_of_transformers(seed, vocab, scale, temperature, top_k, top_p):
    logits = (np.random.default_rng(seed).normal(size=(3, vocab)) * scale).astype(np.float32)
    sampling = Sampling(temperature, top_k, top_p)
    whole = probabilities_of_transformers(logits, Sampling(temperature, top_k))
    mass = np.cumsum(-np.sort(-whole, axis=1), axis=1)
    assume(top_p == 1 or np.abs(mass - top_p).min() > 1e-9)  # to the last bit a token may fall on either side
    ours, theirs = probabilities_of_ours(logits, sampling), probabilities_of_transformers(logits, sampling)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=3), seed=1)
    drawn = sampler(np.repeat(logits, 40000, axis=0))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares == pytest.approx(np.array([0.5, 0.3, 0.15, 0]) / 0.95, abs=0.01)


def test_seed_fixes_the_draws():
    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    sampling = Sampling(temperature=1.0, top_p=0.9)

    def draws(seed: int) -> list[list[int]]:
        sampler = Sampler(sampling, seed)
        return [sampler(logits).tolist() for _ in range(5)]

    assert draws(3) == draws(3) != draws(4)


def test_greedy_takes_the_most_likely_token():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 0.5]], dtype=np.float32)
    assert Sampler(GREEDY)(logits).tolist() == [1, 0]
    assert Sampler(Sampling(temperature=5.0, top_k=1))(logits).tolist() == [1, 0]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)])
@pytest.mark.parametrize(
    ("row", "best"),
    [([0.0, np.nan, 1.0], "nan"), ([0.0, np.inf, 1.0], "inf"), ([-np.inf, -np.inf, -np.inf], "-inf")],
)
def test_a_best_token_that_is_no_number_is_not_taken(sampling, row, best):
    logits = np.array([[0.0, 1.0, 2.0], row], dtype=np.float32)
    with pytest.raises(
        CheckFailed, match=f"best logit of a row is {best}: the graph or its weights are broken"
    ):
        Sampler(sampling)(logits)


def test_tokens_may_be_ruled_out():
    logits = np.array([[-np.inf, 1.0, -np.inf]], dtype=np.float32)
    assert Sampler(Sampling(temperature=1.0))(np.repeat(logits, 20, axis=0)).tolist() == [1] * 20


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_bad_parameters_name_themselves(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Sampling(**bad)


def test_a_temperature_next_to_zero_takes_the_best():
    logits = np.array([[1.0, 3.0, 2.0]], dtype=np.float32)
    assert Sampler(Sampling(temperature=1e-308))(logits).tolist() == [1]
