"""GPTQ: inputs are rounded one after the other, and each error is made up for by the inputs still to come.

Frantar et al., arXiv 2210.17323. Scales and zero points of all blocks are searched first (`k_quant`, weighted by the
inputs' mean squares); then the inputs are visited from the most important one on, which the fixed blocks allow.
"""

import numpy as np

from llama4_pipeline.graph.quantize.k_quant import search_parameters
from llama4_pipeline.graph.quantize.rtn import inverse
from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme, to_blocks
from llama4_pipeline.graph.quantize.statistics import Statistics

_BATCH = 64  # inputs whose errors are collected before they are handed to the rest in one product


class Gptq:
    """Second-order rounding; needs statistics."""

    name = "gptq"
    needs_calibration = True
    piece_weights = 1 << 19

    def quantize(self, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None = None) -> Quantised:
        """Quantises rows of a float32 [N, K] matrix."""
        if statistics is None:
            raise ValueError("gptq needs statistics of the inputs")
        blocks = to_blocks(weight, scheme.block_size)
        importance = to_blocks(statistics.importance[None], scheme.block_size)
        scales, zeros = search_parameters(blocks, scheme, importance)
        codes = np.empty((blocks[0].size, len(weight)), np.uint8)
        codes[:] = np.repeat(zeros, scheme.block_size, axis=1).T  # what lies behind K
        codes[statistics.order] = _round(weight, scales, zeros, scheme, statistics)
        codes = np.ascontiguousarray(codes.T).reshape(blocks.shape)
        return Quantised(codes, scales, None if scheme.symmetric else zeros)


def _round(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme, statistics: Statistics
) -> np.ndarray:
    """Codes uint8 [K, N], inputs in the order of the statistics."""
    order, feedback = statistics.order, statistics.feedback
    block = order // scheme.block_size
    left = np.ascontiguousarray(weight.T[order])  # [K, N]: what is still to be expressed
    step, per_step = scales.T.astype(np.float32), inverse(scales).T
    zero = zeros.T.astype(np.float32)
    codes = np.empty(left.shape, np.uint8)
    for start in range(0, len(order), _BATCH):
        stop = min(start + _BATCH, len(order))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for k in range(start, stop):
            b = block[k]
            code = np.clip(np.rint(left[k] * per_step[b] + zero[b]), 0, scheme.top)
            codes[k] = code
            error = (left[k] - (code - zero[b]) * step[b]) / feedback[k, k]
            left[k + 1 : stop] -= np.outer(feedback[k, k + 1 : stop], error)
            errors[k - start] = error
        left[stop:] -= feedback[start:stop, stop:].T @ errors
    return codes
