"""Initializers that are made while they are written: what is resident is one piece, never the tensor."""

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import BinaryIO, Self

import numpy as np
import onnx_ir as ir

from llama4_pipeline.llama4.weights import require_finite

Pieces = Callable[[], Iterator[np.ndarray]]
Advance = Callable[[int], None]
STRIP = 128  # columns that are turned at once
_PADDING = 8


class StreamedTensor(ir.LazyTensor):
    """A tensor that arrives as pieces. Pieces of another float type than the tensor's are cast when written.

    A float32 one that holds NaN or infinity is refused with an InputError when it is read or written.

    Args:
        name: initializer name.
        dtype: element type.
        shape: of the whole tensor.
        pieces: called for each reading.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], pieces: Pieces) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.pieces = pieces

    @abstractmethod
    def write(self, file: BinaryIO, advance: Advance) -> None:
        """Writes the tensor where the file stands; `advance` hears of the bytes written."""

    def converted(self, dtype: ir.DataType, convert: Callable[[np.ndarray], np.ndarray]) -> Self:
        """The same tensor in another element type, converted piece by piece when it is written."""
        return type(self)(
            self.name or "",
            dtype,
            tuple(self.shape.numpy()),
            lambda: (convert(piece) for piece in self.pieces()),
        )

    @abstractmethod
    def _whole(self) -> ir.TensorProtocol: ...

    def _typed(self, piece: np.ndarray) -> np.ndarray:
        typed = np.ascontiguousarray(piece, dtype=self.dtype.numpy())
        # One pass at the speed of memory; only a sum that is not finite is worth a second.
        if typed.dtype == np.float32 and not math.isfinite(np.vdot(typed, typed)):
            require_finite(typed, self.name or "a tensor")
        return typed


class PiecewiseTensor(StreamedTensor):
    """Pieces are runs of the tensor's elements, in order."""

    def write(self, file: BinaryIO, advance: Advance) -> None:
        """Writes piece behind piece."""
        for piece in self.pieces():
            typed = self._typed(piece)
            typed.tofile(file)
            advance(typed.nbytes)

    def _whole(self) -> ir.TensorProtocol:
        flat = np.concatenate([self._typed(piece).reshape(-1) for piece in self.pieces()])
        return ir.Tensor(flat.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)


class TransposedTensor(StreamedTensor):
    """A matrix [K, N] of which the transpose is at hand: pieces are [n, K], runs of columns, in order.

    A checkpoint keeps a linear weight as [out, in], a graph multiplies by [in, out].
    """

    def write(self, file: BinaryIO, advance: Advance) -> None:
        """Writes each piece across the rows of the matrix: read once, written once, nothing turned as a whole."""
        inputs, columns = self.shape.numpy()
        start, item = file.tell(), self.dtype.numpy().itemsize
        file.flush()
        done = 0
        for piece in self.pieces():
            rows = _transposed(self._typed(piece)).view(np.uint8)
            if len(piece) == columns:
                rows.tofile(file)
            else:
                _scatter(file.fileno(), rows, start + done * item, columns * item)
            done += len(piece)
            advance(rows.nbytes)
        file.seek(start + done * inputs * item)

    def _whole(self) -> ir.TensorProtocol:
        matrix = np.concatenate([self._typed(piece) for piece in self.pieces()]).T
        return ir.Tensor(np.ascontiguousarray(matrix), dtype=self.dtype, name=self.name)


def turned(strip: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """[inputs, parts, n] to [n * parts, inputs], into `out` where it is given.

    By way of a copy whose rows do not fall on the same lines of the cache, four times as fast as numpy by itself.
    """
    inputs, parts, count = strip.shape
    padded = np.empty((inputs, parts, count + _PADDING), strip.dtype)[:, :, :count]
    padded[:] = strip
    out = np.empty((count * parts, inputs), strip.dtype) if out is None else out
    out.reshape(count, parts, inputs)[:] = padded.transpose(2, 1, 0)
    return out


def _transposed(matrix: np.ndarray) -> np.ndarray:
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(out), STRIP):
        turned(matrix[:, None, start : start + STRIP], out[start : start + STRIP])
    return out


def _scatter(file: int, rows: np.ndarray, offset: int, stride: int) -> None:
    """Writes uint8 rows `stride` bytes apart, the first at `offset`."""
    for row in rows:
        written = os.pwrite(file, row, offset)
        if written != len(row):
            raise OSError(f"{len(row)} requested and {written} written")
        offset += stride
