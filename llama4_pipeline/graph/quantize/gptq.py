"""GPTQ: inputs are rounded one after the other, and each error is made up for by the inputs still to come.

Frantar et al., arXiv 2210.17323. Scales and zero points of all blocks are searched first (`k_quant`, weighted by the
inputs' mean squares); then the inputs are visited from the most important one on, which the fixed blocks allow. What
comes of it is refined: scales are fitted to the codes under the whole Hessian, then each code to all others (QuantEase,
arXiv 2309.01885). Not the weight is rounded but a matrix near it that makes up for the layers before (GPTAQ, arXiv
2504.02692).
"""

import numpy as np

from llama4_pipeline.graph.quantize.k_quant import search_parameters
from llama4_pipeline.graph.quantize.rtn import inverse
from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme, to_blocks
from llama4_pipeline.graph.quantize.statistics import Statistics

_REFINEMENTS = 2
_BATCH = 32  # inputs whose errors are collected before they are handed to the rest in one product


class Gptq:
    """Second-order rounding; needs statistics."""

    name = "gptq"
    piece_weights = 1 << 20

    def quantize(self, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None = None) -> Quantised:
        """Quantises rows of a float32 [N, K] matrix."""
        if statistics is None:
            raise ValueError("gptq needs statistics of the inputs")
        weight = statistics.target(weight)
        blocks = to_blocks(weight, scheme.block_size)
        importance = to_blocks(statistics.importance[None], scheme.block_size)
        scales, zeros = search_parameters(blocks, scheme, importance)
        codes = np.empty((blocks[0].size, len(weight)), np.uint8)
        codes[:] = np.repeat(zeros, scheme.block_size, axis=1).T  # what lies behind K
        codes[statistics.order] = _round(weight, scales, zeros, scheme, statistics)
        inner = codes[: weight.shape[1]]
        for _ in range(_REFINEMENTS):
            scales = fit_scales_to_outputs(weight, inner, scales, zeros, scheme, statistics.damped)
            _fit_codes(weight, inner, scales, zeros, scheme, statistics.damped)
        codes = np.ascontiguousarray(codes.T).reshape(blocks.shape)
        return Quantised(codes, scales, None if scheme.symmetric else zeros)


def fit_scales_to_outputs(
    weight: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    scheme: Scheme,
    hessian: np.ndarray,
) -> np.ndarray:
    """The scales of least output error for given codes, all blocks of a row together.

    Args:
        weight: float32 [N, K].
        codes: uint8 [K, N].
        scales: [N, B], which stay where a row cannot be solved.
        zeros: uint8 [N, B].
        scheme: of the result.
        hessian: float32 [K, K], positive definite.

    Returns:
        [N, B] in the scheme's scale dtype.
    """
    inputs, starts = len(codes), range(0, len(codes), scheme.block_size)
    steps = codes - np.repeat(zeros.T.astype(np.float32), scheme.block_size, axis=0)[:inputs]  # [K, N]
    products = np.empty((len(weight), len(starts), len(starts)), np.float32)
    for place, start in enumerate(starts):
        block = slice(start, start + scheme.block_size)
        sums = _block_sums(hessian[start:, block] @ steps[block], steps[start:], scheme.block_size)
        products[:, place, place:] = products[:, place:, place] = sums
    wanted = _block_sums(hessian @ weight.T, steps, scheme.block_size)
    diagonal = products.diagonal(axis1=1, axis2=2).copy()  # before it is damped
    index = np.arange(len(starts))
    products[:, index, index] += 1e-6 * diagonal.max(axis=1, keepdims=True) + np.finfo(np.float32).tiny
    fitted = np.linalg.solve(products, wanted[..., None])[..., 0]
    return np.where(diagonal > 0, fitted, scales).astype(scheme.scale_dtype)


def _block_sums(left: np.ndarray, right: np.ndarray, block_size: int) -> np.ndarray:
    """Sums of products over the inputs of each block: [K, N] and [K, N] to [N, B]."""
    missing = -len(left) % block_size
    if missing:
        left, right = (np.pad(each, ((0, missing), (0, 0))) for each in (left, right))
    shape = (-1, block_size, left.shape[1])
    return np.einsum("bkn,bkn->nb", left.reshape(shape), right.reshape(shape))


def _fit_codes(
    weight: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    scheme: Scheme,
    hessian: np.ndarray,
) -> None:
    """Visits every input once and gives it, in place, the code that is best while all others stay."""
    step, per_step = scales.T.astype(np.float32), inverse(scales).T
    zero = zeros.T.astype(np.float32)
    block = np.arange(len(codes)) // scheme.block_size
    rounded = (codes - zero[block]) * step[block]  # [K, N]
    slope = hessian @ (weight.T - rounded)
    for start in range(0, len(codes), _BATCH):
        batch = slice(start, min(start + _BATCH, len(codes)))
        before = rounded[batch].copy()
        for k in range(batch.start, batch.stop):
            b = block[k]
            wish = rounded[k] + slope[k] / hessian[k, k]
            codes[k] = np.clip(np.rint(wish * per_step[b] + zero[b]), 0, scheme.top)
            value = (codes[k] - zero[b]) * step[b]
            slope[k + 1 : batch.stop] -= np.outer(hessian[k + 1 : batch.stop, k], value - rounded[k])
            rounded[k] = value
        slope[batch.stop :] -= hessian[batch.stop :, batch] @ (rounded[batch] - before)


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
