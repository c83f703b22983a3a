"""What calibration tells about the inputs of one matrix."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

import numpy as np

_SMALL = 64  # rows: below it the call costs more than the work
_DAMPING = 0.01  # of the mean diagonal, as in the GPTQ paper


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of one matrix, over the calibration tokens that reach it.

    What follows from them is computed once, also where several threads ask for it at the same time.

    Attributes:
        hessian: float32 [K, K], the mean of x x^T.
        tokens: how many tokens were seen.
    """

    hessian: np.ndarray
    tokens: int
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
    """Sums x x^T over tokens that arrive a few at a time."""

    _BATCH = 2048

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: np.ndarray | None = None
        self._waiting: list[np.ndarray] = []

    def add(self, inputs: np.ndarray) -> None:
        """Takes float32 [tokens, K]."""
        self._waiting.append(inputs)
        if sum(len(part) for part in self._waiting) >= self._BATCH:
            self._flush()

    def statistics(self) -> Statistics | None:
        """The mean so far; None where no token came."""
        self._flush()
        return None if self._sum is None else Statistics(self._sum / self.tokens, self.tokens)

    def _flush(self) -> None:
        if not self._waiting:
            return
        inputs = np.concatenate(self._waiting)
        self._waiting.clear()
        self.tokens += len(inputs)
        product = inputs.T @ inputs
        self._sum = product if self._sum is None else self._sum + product
