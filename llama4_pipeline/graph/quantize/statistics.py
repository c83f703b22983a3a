"""What calibration tells about the inputs of one matrix."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

import numpy as np

_SMALL = 64  # rows: below it the call costs more than the work
_DAMPING = 0.01  # of the mean diagonal, as in the GPTQ paper
# How far of the way to the matrix of least error. For 0, 1/4, 1/2, 7/10 and 1 the divergence of `mixed` in 10^-3 nats
# was 8.5, 7.8, 7.6, 7.6, 8.2 on tiny and 8.1, 7.1, 6.6, 6.7, 7.3 on tiny-two-experts (2026-11-30).
_MADE_UP_FOR = 0.5


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of one matrix, over the calibration tokens that reach it.

    What follows from them is computed once, also where several threads ask for it at the same time.

    Attributes:
        hessian: float32 [K, K], the mean of x x^T, where x are the inputs behind layers that are rounded.
        tokens: how many tokens were seen.
        drift: float32 [K, K], the mean of (y - x) x^T, where y are the inputs that the float model has for the same
            token; None where they are the same.
    """

    hessian: np.ndarray
    tokens: int
    drift: np.ndarray | None = None
    _made: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: RLock = field(default_factory=RLock, init=False, repr=False, compare=False)

    @property
    def importance(self) -> np.ndarray:
        """Mean square of each input, float32 [K]."""
        return np.diagonal(self.hessian).copy()

    @property
    def order(self) -> np.ndarray:
        """Inputs from the most to the least important, int64 [K]."""
        return self._once("order", lambda: np.argsort(-self.importance, kind="stable"))

    @property
    def damped(self) -> np.ndarray:
        """The Hessian with a little of its mean on the diagonal, float32 [K, K]."""
        return self._once("damped", self._damp)

    @property
    def feedback(self) -> np.ndarray:
        """How the error of an input is made up for by later ones: float32 [K, K], in `order`.

        Upper Cholesky factor of the inverse of the damped Hessian (GPTQ, arXiv 2210.17323, step 3), which is the
        inverse of the factor of the Hessian read backwards. Inputs that are always zero are given the mean, which
        leaves them alone.
        """
        return self._once("feedback", self._factor)

    def target(self, weight: np.ndarray) -> np.ndarray:
        """What the codes of a matrix should stand for, so that its outputs make up for what was rounded before it.

        The float model has the outputs W y. The matrix that comes closest to them on the inputs x is
        W + W E[(y - x) x^T] H^-1, with the damped Hessian H (GPTAQ, arXiv 2504.02692).

        Args:
            weight: float32 [N, K].

        Returns:
            float32 [N, K], part of the way there.
        """
        if self.drift is None:
            return weight
        feedback = self.feedback  # in `order`, feedback^T feedback is the inverse of the damped Hessian
        correction = np.empty_like(weight)
        correction[:, self.order] = (weight @ self.drift)[:, self.order] @ feedback.T @ feedback
        return weight + np.float32(_MADE_UP_FOR) * correction

    def _once(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def _damp(self) -> np.ndarray:
        hessian = self.hessian.copy()
        diagonal = np.diagonal(self.hessian)
        mean = float(diagonal.mean()) or 1.0
        index = np.arange(len(hessian))
        hessian[index, index] += np.where(diagonal == 0, mean, _DAMPING * mean).astype(np.float32)
        return hessian

    def _factor(self) -> np.ndarray:
        backwards = self.order[::-1]
        lower = np.linalg.cholesky(self.damped[np.ix_(backwards, backwards)].astype(np.float64))
        return _invert_lower(lower)[::-1, ::-1].astype(np.float32)


def _invert_lower(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a lower triangular matrix [K, K], by halves: a sixth of the work that a full inverse takes."""
    size = len(matrix)
    if size <= _SMALL:
        return np.linalg.inv(matrix)
    half = size // 2
    top, bottom = _invert_lower(matrix[:half, :half]), _invert_lower(matrix[half:, half:])
    inverse = np.zeros_like(matrix)
    inverse[:half, :half], inverse[half:, half:] = top, bottom
    inverse[half:, :half] = -bottom @ matrix[half:, :half] @ top
    return inverse


class Moments:
    """Sums over tokens that arrive a few at a time, as inputs x behind rounded layers and y behind float ones."""

    _BATCH = 2048

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: list[np.ndarray] = []  # of x x^T, and of (y - x) x^T
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, inputs: np.ndarray, unrounded: np.ndarray) -> None:
        """Takes float32 [tokens, K] twice."""
        self._waiting.append((inputs, unrounded))
        if sum(len(part) for part, _ in self._waiting) >= self._BATCH:
            self._flush()

    def statistics(self) -> Statistics | None:
        """The means so far; None where no token came."""
        self._flush()
        if not self._sums:
            return None
        hessian, drift = (total / self.tokens for total in self._sums)
        return Statistics(hessian, self.tokens, drift)

    def _flush(self) -> None:
        if not self._waiting:
            return
        inputs, unrounded = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self.tokens += len(inputs)
        if not self._sums:
            self._sums = [np.zeros((inputs.shape[1],) * 2, np.float32) for _ in range(2)]
        for total, left in zip(self._sums, (inputs, unrounded - inputs), strict=True):
            total += left.T @ inputs
