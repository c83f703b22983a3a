"""Texts for calibration that reach every expert of a mixture."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Reach(Protocol):
    """Says which experts texts reach.

    Attributes:
        experts: (layer, expert) of each column of `count`.
    """

    experts: Sequence[tuple[int, int]]

    def count(self, texts: Sequence[str]) -> Any:
        """Tokens of each text by expert, as an array [texts, experts]."""


@dataclass(frozen=True)
class Coverage:
    """Tokens of a data set by layer and expert.

    Attributes:
        tokens: layer -> tokens of each of its experts.
        starved: (layer, expert) of those that get less than the wanted share of their layer.
    """

    tokens: dict[int, list[int]]
    starved: tuple[tuple[int, int], ...]


class ExpertShares:
    """What share of its layer's tokens an expert must get, and which texts give it to all.

    Args:
        reach: counts tokens by expert.
        least: the share, of the choices in the layer.
    """

    def __init__(self, reach: Reach, least: float) -> None:
        self._reach, self._least = reach, least
        layers = [layer for layer, _ in reach.experts]
        self._same_layer = np.equal.outer(layers, layers)
        self._counted: dict[str, np.ndarray] = {}

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Counts the tokens of texts."""
        totals = self._count(texts).sum(0)
        tokens = defaultdict(list)
        for (layer, _), total in zip(self._reach.experts, totals.tolist(), strict=True):
            tokens[layer].append(total)
        starved = np.flatnonzero(totals < self._wanted(totals))
        return Coverage(dict(tokens), tuple(self._reach.experts[expert] for expert in starved.tolist()))

    def covering(self, texts: Sequence[str], drawn: Sequence[int], beside: Sequence[str] = ()) -> list[int]:
        """Exchanges as few texts of a draw as it takes to give every expert its share, as far as `texts` can.

        Args:
            texts: to draw from.
            drawn: indices of the texts that were drawn.
            beside: texts that stay beside them.

        Returns:
            As many indices, rising.
        """
        inside = np.array(drawn)
        counts = self._count([texts[index] for index in inside])
        fixed = self._count(beside).sum(0) if beside else 0
        if not self._starved(counts.sum(0) + fixed).any():
            return sorted(drawn)
        outside = np.setdiff1d(np.arange(len(texts)), inside)
        spare = self._count([texts[index] for index in outside])
        while len(outside):
            totals = counts.sum(0) + fixed
            helped = self._starved(totals) & spare.any(0)
            loss = self._most_dispensable(counts, totals)
            if not helped.any() or loss is None:
                break
            expert = np.flatnonzero(helped)[totals[helped].argmin()]
            gain = spare[:, expert].argmax()
            if counts[loss, expert] >= spare[gain, expert]:
                break
            inside[loss], counts[loss] = outside[gain], spare[gain]
            outside, spare = np.delete(outside, gain), np.delete(spare, gain, axis=0)
        return sorted(inside.tolist())

    def _count(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._counted]
        if new:
            self._counted.update(zip(new, np.asarray(self._reach.count(new), dtype=np.int64), strict=True))
        counts = np.array([self._counted[text] for text in texts], dtype=np.int64)
        return counts.reshape(len(texts), len(self._reach.experts))

    def _wanted(self, totals: np.ndarray) -> np.ndarray:
        return self._least * (self._same_layer @ totals)

    def _starved(self, totals: np.ndarray) -> np.ndarray:
        return totals < self._wanted(totals)

    def _most_dispensable(self, counts: np.ndarray, totals: np.ndarray) -> int | None:
        """The text that takes least from starved experts; None if without any of them another would starve."""
        starved = self._starved(totals)
        kept = (totals - counts) / np.maximum(self._wanted(totals), 1)  # [texts, experts]
        worst = np.where(starved | (counts == 0), np.inf, kept).min(axis=1)
        free = np.flatnonzero(worst >= 1)
        if not len(free):
            return None
        return int(free[np.lexsort((-worst[free], counts[free][:, starved].sum(1)))[0]])
