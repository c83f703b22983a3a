"""The interface of a quantisation method: one matrix in, codes and scales out."""

from typing import Protocol

import numpy as np

from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme
from llama4_pipeline.graph.quantize.statistics import Statistics


class Method(Protocol):
    """Chooses the codes, scales and zero points of a matrix.

    Attributes:
        name: as given to `--method`; `methods.METHODS` says what it needs.
        piece_weights: how many weights it handles best at once; rows are independent.
    """

    name: str
    piece_weights: int

    def quantize(self, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None = None) -> Quantised:
        """Quantises rows of a weight.

        Args:
            weight: float32 [N, K].
            scheme: how the result is stored.
            statistics: of the K inputs; None where there are none.
        """
