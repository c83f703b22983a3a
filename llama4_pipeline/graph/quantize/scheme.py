"""What a quantised weight is: codes, scales, zero points, and the layout in which the operators read them.

MatMulNBits, QMoE and GatherBlockQuantized of ONNX Runtime (1.32, tried in the tests) share one convention:
`weight = (code - zero_point) * scale`, one scale and zero point for each run of `block_size` inputs of a row; 4-bit
codes lie two to a byte, the first in the low half; without zero points the zero point is 2^(bits-1).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llama4_pipeline.methods import BLOCK_SIZES

_BESIDE_CODES = 8  # bytes of each block's scale and sum, in the pack that a CPU's kernels make of a weight


@dataclass(frozen=True)
class Scheme:
    """How the numbers of one weight are stored.

    Attributes:
        bits: 4 or 8.
        block_size: inputs that share a scale; a power of two from 16.
        symmetric: no zero points are stored.
        scale_dtype: float32 or float16; codes are chosen for the scales as stored.
    """

    bits: int
    block_size: int
    symmetric: bool
    scale_dtype: Literal["float32", "float16"] = "float32"

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    def blocks(self, inputs: int) -> int:
        """Blocks in a row of so many inputs; the last may be partial."""
        return -(-inputs // self.block_size)

    def nbytes(self, rows: int, inputs: int) -> int:
        """Bytes of codes, scales and zero points of a [rows, inputs] matrix."""
        blocks = self.blocks(inputs)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        row = blocks * (self.block_size * self.bits // 8 + np.dtype(self.scale_dtype).itemsize) + zeros
        return rows * row

    def fit(self, *inputs: int) -> "Scheme | None":
        """This scheme with the largest block, at most its own, that divides all widths; None if 16 does not."""
        for scheme in self._from_own_block_down():
            if all(width % scheme.block_size == 0 for width in inputs):
                return scheme
        return None

    def fit_filled_up(self, inputs: int) -> "Scheme":
        """This scheme with the block, at most its own, of which a kernel reads least; the larger of two alike.

        The last block of a row may be partial, and is stored and read whole.
        """

        def read_bytes(scheme: Scheme) -> int:
            return scheme.blocks(inputs) * (scheme.block_size * scheme.bits // 8 + _BESIDE_CODES)

        return min(self._from_own_block_down(), key=read_bytes)

    def _from_own_block_down(self) -> "list[Scheme]":
        return [
            replace(self, block_size=block) for block in reversed(BLOCK_SIZES) if block <= self.block_size
        ]


@dataclass(frozen=True)
class Quantised:
    """A quantised matrix of N rows and K inputs, in B = ceil(K / block_size) blocks.

    Attributes:
        codes: uint8 [N, B, block_size], unpacked; what lies behind K holds the zero point.
        scales: [N, B] of the scheme's scale dtype.
        zero_points: uint8 [N, B], or None for a symmetric scheme.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def to_blocks(weight: np.ndarray, block_size: int) -> np.ndarray:
    """[N, K] as [N, B, block_size], zeros behind K; a view where K is a multiple of the block."""
    rows, inputs = weight.shape
    short = -inputs % block_size
    if short:
        weight = np.pad(weight, ((0, 0), (0, short)))
    return weight.reshape(rows, -1, block_size)


def dequantize(
    quantised: Quantised, scheme: Scheme, inputs: int, out: np.ndarray | None = None
) -> np.ndarray:
    """The float32 [N, K] matrix that the operators compute with; in `out`, shaped as the codes, if given."""
    zero = np.float32(scheme.middle)
    weight = np.empty(quantised.codes.shape, np.float32) if out is None else out
    weight[:] = quantised.codes
    weight -= zero if quantised.zero_points is None else quantised.zero_points[..., None].astype(np.float32)
    weight *= quantised.scales[..., None].astype(np.float32)
    return weight.reshape(len(weight), -1)[:, :inputs]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs uint8 codes along the last axis, the first of a byte in its low bits; an odd end is filled with 0."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    pairs = np.ascontiguousarray(codes).view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)
