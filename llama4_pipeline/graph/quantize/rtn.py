"""Round to nearest: the block's range sets its scale, nothing is searched."""

import numpy as np

from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme, to_blocks
from llama4_pipeline.graph.quantize.scratch import scratch
from llama4_pipeline.graph.quantize.statistics import Statistics


class RoundToNearest:
    """The plain method, and the yardstick of the others."""

    name = "rtn"
    piece_weights = 1 << 18

    def quantize(self, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None = None) -> Quantised:
        """Quantises a float32 [N, K] matrix; no statistics are used."""
        blocks = to_blocks(weight, scheme.block_size)
        scales, zeros = range_parameters(blocks, scheme)
        return Quantised(encode(blocks, scales, zeros, scheme), scales, None if scheme.symmetric else zeros)


def range_parameters(blocks: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points that cover each block's range and represent 0 exactly.

    Args:
        blocks: float32 [N, B, block_size].

    Returns:
        Scales [N, B] in the scheme's scale dtype and zero points uint8 [N, B].
    """
    flat, starts = blocks.reshape(-1), np.arange(0, blocks.size, blocks.shape[-1])
    low = np.minimum(np.minimum.reduceat(flat, starts), 0.0).reshape(blocks.shape[:-1])
    high = np.maximum(np.maximum.reduceat(flat, starts), 0.0).reshape(blocks.shape[:-1])
    if scheme.symmetric:
        # The extreme that lies further out gets the end of the codes that reaches further; its sign is the scale's.
        scales = (np.where(high > -low, high, low) / -scheme.middle).astype(scheme.scale_dtype)
        return scales, np.full(scales.shape, scheme.middle, np.uint8)
    scales = ((high - low) / scheme.top).astype(scheme.scale_dtype)
    zeros = np.clip(np.rint(-low * inverse(scales)), 0, scheme.top)
    return scales, zeros.astype(np.uint8)


def encode(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The nearest code of every weight, uint8 of the shape of `blocks`."""
    codes = np.multiply(blocks, inverse(scales)[..., None], out=scratch("codes", blocks.shape))
    codes += zeros[..., None].astype(np.float32)
    np.rint(codes, out=codes)
    np.clip(codes, 0, scheme.top, out=codes)
    return codes.astype(np.uint8)


def inverse(scales: np.ndarray) -> np.ndarray:
    """1 / scale in float32; 0 where the scale is 0 (a block of zeros)."""
    wide = scales.astype(np.float32)
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0)
