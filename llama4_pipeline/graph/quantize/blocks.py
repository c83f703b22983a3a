"""Reads the rows of a weight block by block; what is resident does not grow with the weight.

A block is read into memory of its own (or, where rows are columns of the file, mapped for itself), so that a file's
pages do not count as ours once a block is done.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from llama4_pipeline.graph.external_data import read_elements
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor, TransposedTensor

_BLOCK_WEIGHTS = 1 << 24


def row_blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Blocks [n, K] of a tensor [N, K], in order, of the stored dtype."""
    if isinstance(tensor, PiecewiseTensor):
        inputs = tensor.shape.numpy()[-1]
        yield from (piece.reshape(-1, inputs) for piece in tensor.pieces())
    else:
        yield from _stored_rows(tensor, *tensor.shape.numpy())


def expert_blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, np.ndarray]]:
    """Expert number and blocks [n, K] of a stack [E, N, K], in order."""
    experts, rows, inputs = tensor.shape.numpy()
    if isinstance(tensor, PiecewiseTensor):
        done = 0
        for block in row_blocks(tensor):
            if done % rows + len(block) > rows:
                raise ValueError(f"{tensor.name}: a piece reaches over the border of two experts")
            yield done // rows, block
            done += len(block)
        return
    for expert in range(experts):
        for block in _stored_rows(tensor, rows, inputs, first=expert * rows):
            yield expert, block


def column_blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Blocks [n, K] of the transpose of a tensor [K, N], in order."""
    inputs, rows = tensor.shape.numpy()
    step = max(_BLOCK_WEIGHTS // inputs, 1)
    if isinstance(tensor, TransposedTensor):
        yield from tensor.pieces()
        return
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.numpy().T
        return
    for start in range(0, rows, step):
        mapped = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, (inputs, rows))
        yield mapped[:, start : start + step].T


def _stored_rows(tensor: ir.TensorProtocol, rows: int, inputs: int, first: int = 0) -> Iterator[np.ndarray]:
    """Rows `first` to `first + rows` of a tensor whose last axis is `inputs` long."""
    step = max(_BLOCK_WEIGHTS // inputs, 1)
    for start in range(first, first + rows, step):
        count = min(step, first + rows - start)
        if isinstance(tensor, ir.ExternalTensor):
            yield read_elements(tensor, start * inputs, count * inputs).reshape(count, inputs)
        else:
            yield tensor.numpy().reshape(-1, inputs)[start : start + count]


def expert_matrix(tensor: ir.TensorProtocol, expert: int) -> np.ndarray:
    """One expert [N, K] of a stack."""
    _, rows, inputs = tensor.shape.numpy()
    return np.concatenate(list(_stored_rows(tensor, rows, inputs, first=expert * rows)))
