"""Search of scale and zero point: the pair that minimises the (weighted) squared error of a block.

After llama.cpp's `make_qkx2_quants` (ggml-quants.c), with the integer zero points that ONNX Runtime stores: each
candidate stretches the range a little, the scale is then fitted to the codes by least squares, and the best by true
error stays.
"""

import numpy as np

from llama4_pipeline.graph.quantize.rtn import encode, range_parameters
from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme, to_blocks
from llama4_pipeline.graph.quantize.statistics import Statistics

# Of the range; 8 bits gain nothing from clipping more.
_STRETCHES = {4: (1.0, 0.93, 0.86, 0.79, 0.72), 8: (1.0, 0.985)}
_SHIFTS = (0, -1, 1)  # of the zero point


class KQuant:
    """Squared-error search by block; weighted by the mean square of each input where calibration gives it."""

    name = "k_quant"
    piece_weights = 1 << 16

    def quantize(self, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None = None) -> Quantised:
        """Quantises a float32 [N, K] matrix."""
        blocks = to_blocks(weight, scheme.block_size)
        importance = None
        if statistics is not None:
            importance = to_blocks(statistics.importance[None], scheme.block_size)
        scales, zeros = search_parameters(blocks, scheme, importance)
        return Quantised(encode(blocks, scales, zeros, scheme), scales, None if scheme.symmetric else zeros)


def search_parameters(
    blocks: np.ndarray, scheme: Scheme, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The scales and zero points of least (weighted) squared error among the candidates.

    Args:
        blocks: float32 [N, B, block_size].
        importance: float32 [1, B, block_size], weight of each squared error; None weighs all alike.

    Returns:
        Scales [N, B] in the scheme's scale dtype and zero points uint8 [N, B]; never worse than round to nearest.
    """
    base_scales, base_zeros = range_parameters(blocks, scheme)
    best_scales, best_zeros = base_scales.copy(), base_zeros.copy()
    best_error = _error(blocks, base_scales, base_zeros, scheme, importance)
    for shift in (0,) if scheme.symmetric else _SHIFTS:
        zeros = np.clip(base_zeros.astype(np.int16) + shift, 0, scheme.top).astype(np.uint8)
        for stretch in _STRETCHES[scheme.bits]:
            scales = (base_scales * np.float32(stretch)).astype(scheme.scale_dtype)
            scales = fit_scales(blocks, encode(blocks, scales, zeros, scheme), zeros, scheme, importance)
            error = _error(blocks, scales, zeros, scheme, importance)
            better = error < best_error
            np.copyto(best_error, error, where=better)
            np.copyto(best_scales, scales, where=better)
            np.copyto(best_zeros, zeros, where=better)
    return best_scales, best_zeros


def fit_scales(
    blocks: np.ndarray, codes: np.ndarray, zeros: np.ndarray, scheme: Scheme, importance: np.ndarray | None
) -> np.ndarray:
    """The least-squares scale of each block for given codes and zero points; 0 for a block of zeros."""
    steps = codes.astype(np.float32)
    steps -= zeros[..., None]
    weighted = steps if importance is None else steps * importance
    above = np.einsum("nbk,nbk->nb", weighted, blocks)
    below = np.einsum("nbk,nbk->nb", weighted, steps)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0).astype(scheme.scale_dtype)


def _error(
    blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme, importance: np.ndarray | None
) -> np.ndarray:
    difference = encode(blocks, scales, zeros, scheme).astype(np.float32)
    difference -= zeros[..., None]
    difference *= scales[..., None].astype(np.float32)
    difference -= blocks
    weighted = difference if importance is None else difference * importance
    return np.einsum("nbk,nbk->nb", weighted, difference)
