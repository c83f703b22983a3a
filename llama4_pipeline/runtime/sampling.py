"""From logits to the next token: greedy, temperature, top-k and top-p, whole batch at once."""

from dataclasses import dataclass

import numpy as np

from llama4_pipeline.errors import CheckFailed, InputError

_FIRST_NUCLEUS = 256


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. The filters apply in the order temperature, top-k, top-p, as in transformers.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy) or more, no infinity")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a value in (0, 1]")


GREEDY = Sampling()


class Sampler:
    """Draws tokens from logits; the seed fixes the whole sequence of draws."""

    def __init__(self, sampling: Sampling, seed: int = 0) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Chooses one token per row.

        Args:
            logits: float32 [B, vocab].

        Returns:
            int64 [B].

        Raises:
            CheckFailed: a row holds a NaN or an infinity, or nothing but -inf.
        """
        best = logits.argmax(axis=1)  # a NaN is the argmax of its row
        likeliest = logits[np.arange(len(logits)), best]
        if not np.isfinite(likeliest).all():
            broken = likeliest[~np.isfinite(likeliest)][0]
            raise CheckFailed(f"the best logit of a row is {broken}: the graph or its weights are broken")
        if self._sampling.temperature == 0:
            return best.astype(np.int64)
        tokens, probabilities = candidates(logits, self._sampling)
        cumulative = probabilities.cumsum(axis=1)
        draw = self._random.random((len(logits), 1)) * cumulative[:, -1:]
        choice = np.minimum((cumulative <= draw).sum(axis=1, keepdims=True), cumulative.shape[1] - 1)
        return np.take_along_axis(tokens, choice, axis=1)[:, 0].astype(np.int64)


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that survive the filters, and their weights.

    Args:
        logits: float32 [B, vocab].
        sampling: its temperature must be above 0.

    Returns:
        Token ids int64 [B, C] and probabilities float64 [B, C] before renormalization; a token that the filters
        drop has probability 0. C is the vocabulary only when nothing filters.
    """
    vocab = logits.shape[1]
    below_best = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # a temperature next to 0 leaves the best alone
        weights = np.exp(below_best / sampling.temperature)
    if 0 < sampling.top_k < vocab:
        tokens = np.argpartition(weights, vocab - sampling.top_k, axis=1)[:, vocab - sampling.top_k :]
        weights = np.take_along_axis(weights, tokens, axis=1)
    else:
        tokens = np.broadcast_to(np.arange(vocab), logits.shape)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    if sampling.top_p < 1:
        return _nucleus(tokens, probabilities, sampling.top_p)
    return tokens, probabilities


def _nucleus(tokens: np.ndarray, probabilities: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the most likely tokens up to mass `top_p`, sorting no more of the vocabulary than that takes."""
    size = probabilities.shape[1]
    kept = min(_FIRST_NUCLEUS, size)
    while True:
        part = np.argpartition(probabilities, size - kept, axis=1)[:, size - kept :]
        mass = np.take_along_axis(probabilities, part, axis=1)
        if kept == size or (mass.sum(axis=1) >= top_p).all():
            break
        kept = min(kept * 8, size)
    order = np.argsort(-mass, axis=1, kind="stable")
    part = np.take_along_axis(part, order, axis=1)
    mass = np.take_along_axis(mass, order, axis=1)
    before = mass.cumsum(axis=1) - mass
    return np.take_along_axis(tokens, part, axis=1), np.where(before < top_p, mass, 0.0)
