"""From the tensors of a checkpoint to the initializers of the exported graph, piece by piece.

Linear weights lie in the checkpoint as [out, in] and are multiplied as [in, out]; q, k, v and gate, up are packed side
by side. Experts [E, in, out] turn to [E, out, in] with gate and up rows alternating, one expert at a time. Pieces keep
the checkpoint's dtype: what writes or quantises them casts.
"""

import re
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from llama4_pipeline.graph.streamed_tensor import (
    STRIP,
    PiecewiseTensor,
    StreamedTensor,
    TransposedTensor,
    turned,
)
from llama4_pipeline.llama4.weights import WeightSource, iterate_rows

_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_PIECE_BYTES = 32 << 20


def graph_tensor(name: str, shape: tuple[int, ...], source: WeightSource) -> StreamedTensor:
    """The float32 initializer `name` of the exported graph, read from the checkpoint when it is written."""
    if ".experts." in name:
        return PiecewiseTensor(name, ir.DataType.FLOAT, shape, lambda: _expert_rows(source, name))
    linear = len(shape) == 2 and "embed_tokens" not in name
    kind = TransposedTensor if linear else PiecewiseTensor
    return kind(name, ir.DataType.FLOAT, shape, lambda: _rows(source, checkpoint_names(name)))


def checkpoint_names(name: str) -> tuple[str, ...]:
    """The checkpoint tensors that initializer `name` is made of, in order."""
    match = re.search(r"(qkv_proj|gate_up_proj)\.(weight|bias)$", name)
    if not match:
        return (name,)
    return tuple(name.replace(match[1], part) for part in _PACKED[match[1]])


def _rows(source: WeightSource, names: tuple[str, ...]) -> Iterator[np.ndarray]:
    for name in names:
        yield from iterate_rows(source, name, _PIECE_BYTES)


def _expert_rows(source: WeightSource, name: str) -> Iterator[np.ndarray]:
    """Runs of rows [n, in] of one expert after the other."""
    experts, inputs, outputs = source.shape(name)
    parts = 2 if name.endswith("gate_up_proj") else 1  # gate | up side by side
    for expert in range(experts):
        matrix = source.read(name, slice(expert, expert + 1))[0]
        bits = matrix.view(f"u{matrix.itemsize}")  # numpy moves bfloat16 one by one
        columns = bits.reshape(inputs, parts, outputs // parts)
        for start in range(0, columns.shape[2], STRIP):
            yield turned(columns[:, :, start : start + STRIP]).view(matrix.dtype)
