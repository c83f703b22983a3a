"""From the tensors of a checkpoint to the initializers of the exported graph, piece by piece.

Linear weights `[out, in]` turn to `[in, out]`; q, k, v and gate, up are packed side by side; experts `[E, in, out]`
turn to `[E, out, in]` with gate and up rows alternating, one expert at a time.
"""

import re
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from llama4_pipeline.graph.external_data import PiecewiseTensor
from llama4_pipeline.llama4.weights import WeightSource

_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_NUMPY = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
}


def graph_tensor(
    name: str, shape: tuple[int, ...], source: WeightSource, dtype: ir.DataType = ir.DataType.FLOAT
) -> PiecewiseTensor:
    """The initializer `name` of the exported graph, read from the checkpoint when it is written.

    Raises:
        KeyError: the checkpoint has none of the tensors that it is made of.
    """
    return PiecewiseTensor(name, dtype, shape, _pieces(name, shape, source, _NUMPY[dtype]))


def checkpoint_names(name: str) -> tuple[str, ...]:
    """The checkpoint tensors that initializer `name` is made of, in order."""
    match = re.search(r"(qkv_proj|gate_up_proj)\.(weight|bias)$", name)
    if not match:
        return (name,)
    return tuple(name.replace(match[1], part) for part in _PACKED[match[1]])


def _pieces(
    name: str, shape: tuple[int, ...], source: WeightSource, dtype: np.typing.DTypeLike
) -> Callable[[], Iterator[np.ndarray]]:
    parts = checkpoint_names(name)

    def experts() -> Iterator[np.ndarray]:
        for e in range(shape[0]):
            matrix = source.read(name, slice(e, e + 1))[0].astype(dtype)  # [in, out]
            if name.endswith("gate_up_proj"):
                matrix = np.stack(np.split(matrix, 2, axis=1), axis=2).reshape(matrix.shape)
            yield matrix.T

    def linear() -> Iterator[np.ndarray]:
        yield np.concatenate([source.read(part).astype(dtype).T for part in parts], axis=1)

    def as_is() -> Iterator[np.ndarray]:
        yield np.concatenate([source.read(part).astype(dtype) for part in parts])

    if ".experts." in name:
        return experts
    return linear if len(shape) == 2 and "embed_tokens" not in name else as_is
