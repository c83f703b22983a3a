"""What calibration tells about the inputs of one matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of one matrix, over the calibration tokens that reach it.

    Attributes:
        hessian: float32 [K, K], the mean of x x^T.
        tokens: how many tokens were seen.
    """

    hessian: np.ndarray
    tokens: int

    @property
    def importance(self) -> np.ndarray:
        """Mean square of each input, float32 [K]."""
        return np.diagonal(self.hessian).copy()
