"""A weight that is quantised while it is written: read once, in pieces, by a few threads."""

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.method import Method
from llama4_pipeline.graph.quantize.rewrite import QuantisedInputs
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize, pack
from llama4_pipeline.graph.quantize.scratch import scratch
from llama4_pipeline.graph.quantize.statistics import Statistics
from llama4_pipeline.graph.quantize.weights import Layout, Weight
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor

_SCALE_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_LOST = 0.7  # relative error; round to nearest in 4 bits has about 0.1
_logger = logging.getLogger(__name__)

Choice = Callable[[int], tuple[Method, Statistics | None]]


@dataclass
class _Piece:
    expert: int
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    squared_error: float
    squared_weight: float


class StreamedWeight:
    """The quantised form of a weight, made when its initializers are written, in the order codes, scales, zero points.

    Attributes:
        weight: the float weight.
        scheme: of all its matrices.
        relative_error: |W - W'| / |W| of each expert, known once the codes were written.
    """

    def __init__(self, weight: Weight, scheme: Scheme, choose: Choice) -> None:
        """Nothing is read here.

        Args:
            choose: method and statistics for an expert's number, asked when its first piece is reached.
        """
        self.weight, self.scheme = weight, scheme
        self.relative_error: tuple[float, ...] = ()
        self._choose = choose
        self._scales: list[np.ndarray] = []
        self._zero_points: list[np.ndarray] = []

    def initializers(self) -> QuantisedInputs:
        """Fresh initializers whose contents arrive when they are written."""
        rows, blocks, bits = self.weight.rows, self.scheme.blocks(self.weight.inputs), self.scheme.bits
        stack = (self.weight.experts,) if self.weight.layout is Layout.EXPERTS else ()
        row_bytes = self.scheme.block_size * bits // 8
        shape = (*stack, rows, blocks * row_bytes) if stack else (rows, blocks, row_bytes)
        codes = self._value("codes", ir.DataType.UINT8, shape, self._write_codes)
        scales = self._value(
            "scales",
            _SCALE_TYPES[self.scheme.scale_dtype],
            (*stack, rows, blocks),
            lambda: self._take(self._scales),
        )
        if self.scheme.symmetric:
            return QuantisedInputs(codes, scales, None, self.scheme)
        shape = (*stack, rows, -(-blocks * bits // 8))
        zeros = self._value("zero_points", ir.DataType.UINT8, shape, lambda: self._take(self._zero_points))
        return QuantisedInputs(codes, scales, zeros, self.scheme)

    def _value(
        self,
        part: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Callable[[], Iterator[np.ndarray]],
    ) -> ir.Value:
        name = f"{self.weight.name}.{part}"
        tensor = PiecewiseTensor(name, dtype, shape, pieces)
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)

    def _write_codes(self) -> Iterator[np.ndarray]:
        errors = np.zeros(self.weight.experts)
        norms = np.zeros(self.weight.experts)
        self._scales.clear()
        self._zero_points.clear()
        for piece in self._quantised_pieces():
            errors[piece.expert] += piece.squared_error
            norms[piece.expert] += piece.squared_weight
            self._scales.append(piece.scales)
            if piece.zero_points is not None:
                self._zero_points.append(piece.zero_points)
            yield piece.codes
        self.relative_error = tuple(np.sqrt(errors / np.maximum(norms, np.finfo(np.float64).tiny)).tolist())
        if lost := [expert for expert, error in enumerate(self.relative_error) if error > _LOST]:
            _logger.warning(
                "%s: rounding takes most of %s: its weights lie too far apart, or below what a scale in %s can be",
                self.weight.name,
                f"expert {', '.join(map(str, lost))}" if self.weight.layout is Layout.EXPERTS else "it",
                self.scheme.scale_dtype,
            )

    def _take(self, parts: list[np.ndarray]) -> Iterator[np.ndarray]:
        if not parts:
            deque(self._write_codes(), maxlen=0)
        yield from parts
        parts.clear()

    def _quantised_pieces(self) -> Iterator[_Piece]:
        """Pieces in order, a few in work at once."""
        workers = len(os.sched_getaffinity(0))
        waiting: deque[Future[_Piece]] = deque()
        work = self._work()
        first = next(work)  # for which calibration multiplies the inputs of a whole layer, in all threads
        # Each worker's products in one thread: several in each make gptq three times slower than none.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
            for expert, rows, method, statistics in chain([first], work):
                waiting.append(pool.submit(self._quantise_piece, expert, rows, method, statistics))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _work(self) -> Iterator[tuple[int, np.ndarray, Method, Statistics | None]]:
        chosen: dict[int, tuple[Method, Statistics | None]] = {}
        for expert, block in self.weight.blocks():
            if expert not in chosen:
                chosen = {expert: self._choose(expert)}
            method, statistics = chosen[expert]
            step = max(method.piece_weights // self.weight.inputs, 1)
            for start in range(0, len(block), step):
                yield expert, block[start : start + step], method, statistics

    def _quantise_piece(
        self, expert: int, rows: np.ndarray, method: Method, statistics: Statistics | None
    ) -> _Piece:
        weight = scratch("weight", rows.shape)
        weight[:] = rows
        squared_weight = float(np.vdot(weight, weight))
        if not math.isfinite(squared_weight):
            raise InputError(
                f"{self.weight.name} has weights that are not finite, or too large to be squared"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            quantised = method.quantize(weight, self.scheme, statistics)
        if not np.isfinite(quantised.scales).all():
            raise InputError(
                f"{self.weight.name} holds {np.abs(weight).max():g}, whose scale in {self.scheme.bits} bits is beyond "
                f"{self.scheme.scale_dtype}: keep float32, or scale the checkpoint's weights down"
            )
        memory = scratch("difference", quantised.codes.shape)
        difference = dequantize(quantised, self.scheme, self.weight.inputs, out=memory)
        difference -= weight
        zeros = None if quantised.zero_points is None else pack(quantised.zero_points, self.scheme.bits)
        codes = pack(quantised.codes, self.scheme.bits)
        return _Piece(
            expert, codes, quantised.scales, zeros, float(np.vdot(difference, difference)), squared_weight
        )
