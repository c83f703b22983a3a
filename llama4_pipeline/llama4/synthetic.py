"""Random weights made on demand, so that a model of any size needs no checkpoint on disk."""

import hashlib
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from llama4_pipeline.llama4.architecture import EMBEDDING, LM_HEAD, Architecture
from llama4_pipeline.llama4.safetensors_file import select_rows

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class SyntheticSource:
    """Random weights made on demand from a tensor's name and a seed; for speed and size, never for quality.

    Four million normal numbers are drawn once for the seed and kept, scaled, in the dtype asked for. A
    tensor is laid out in blocks of 2**18 elements; each block is a run of those numbers that begins where a
    hash of seed, name and block number says. So a piece costs a copy, any piece equals that part of the
    whole, and two tensors or two experts differ. The numbers repeat, which a measurement of time does not
    see: kernels do the same work, and the rows of a matrix stay as good as uncorrelated.

    Norm weights are 1 and biases 0. A matrix is scaled by the root of its input width, those that write
    into the residual stream also by the root of twice the depth, so activations keep their size at any
    depth.
    """

    _BLOCK = 1 << 18
    _DRAWN = 1 << 22

    def __init__(self, architecture: Architecture, seed: int, dtype: str) -> None:
        """Makes a source.

        Args:
            architecture: Names and shapes of the tensors.
            seed: Another seed gives other weights.
            dtype: "float32", "float16" or "bfloat16".
        """
        self._shapes = architecture.checkpoint_tensors()
        self._depth = len(architecture.layers)
        self._seed = seed
        self._dtype = DTYPES[dtype]
        self._drawn: dict[float, np.ndarray] = {}

    def names(self) -> tuple[str, ...]:
        """Canonical names in the order of the model."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The dtype given at the start, for every tensor."""
        return self._dtype

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Makes a tensor or rows of it."""
        first, count, shape = select_rows(self._shapes[name], rows)
        if name.endswith("norm.weight"):
            return np.ones(shape, self._dtype)
        if name.endswith(".bias"):
            return np.zeros(shape, self._dtype)
        numbers = self._numbers(self._deviation(name))
        row = math.prod(shape[1:])
        begin, end = first * row, (first + count) * row
        out = np.empty(end - begin, self._dtype)
        position = begin
        while position < end:
            block, inside = divmod(position, self._BLOCK)
            run = min(self._BLOCK - inside, end - position)
            start = self._block_start(name, block) + inside
            out[position - begin : position - begin + run] = numbers[start : start + run]
            position += run
        return out.reshape(shape)

    def _deviation(self, name: str) -> float:
        shape = self._shapes[name]
        if name == EMBEDDING and LM_HEAD in self._shapes:
            return 1.0
        # Linear [out, in], experts [expert, in, out], and a tied embedding as output projection.
        width = shape[1]
        branch = math.sqrt(2 * self._depth) if "down_proj" in name or "o_proj" in name else 1.0
        return 1.0 / math.sqrt(width) / branch

    def _numbers(self, deviation: float) -> np.ndarray:
        if deviation not in self._drawn:
            generator = np.random.Generator(np.random.SFC64(self._seed))
            drawn = generator.standard_normal(self._DRAWN, np.float32) * np.float32(deviation)
            self._drawn[deviation] = np.concatenate([drawn, drawn[: self._BLOCK]]).astype(self._dtype)
        return self._drawn[deviation]

    def _block_start(self, name: str, block: int) -> int:
        digest = hashlib.sha256(f"{self._seed}/{name}/{block}".encode()).digest()
        return int.from_bytes(digest[:8], "little") % self._DRAWN
