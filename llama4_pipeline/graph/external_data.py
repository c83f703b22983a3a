"""Graphs on disk: `model.onnx` beside its weights, written piece by piece, read by memory map, shared by hard link."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.progress import Progress

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
_INLINE_BYTES = 1024  # smaller constants stay in model.onnx, where graph tools see their values
_PAGE = 4096  # ONNX Runtime maps tensors that begin at a page (onnx/docs/ExternalData.md)
_WORD = 64  # alignment of tensors smaller than a page
_PIECE_BYTES = 64 << 20

Pieces = Callable[[], Iterator[np.ndarray]]


class PiecewiseTensor(ir.LazyTensor):
    """A tensor that is made when it is written: its rows arrive as pieces that never stand in memory together.

    Args:
        name: initializer name.
        dtype: element type; pieces of a sub-byte type arrive packed as ONNX stores them.
        shape: of the whole tensor.
        pieces: called for each reading; yields arrays whose bytes, in order, are the tensor's.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], pieces: Pieces) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.pieces = pieces

    def _whole(self) -> ir.TensorProtocol:
        flat = np.concatenate([np.ascontiguousarray(piece).reshape(-1) for piece in self.pieces()])
        return ir.Tensor(flat.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)


def load_graph(directory: Path) -> ir.Model:
    """Reads `model.onnx` of a graph directory; weights stay on disk, mapped when they are looked at.

    Raises:
        InputError: the directory holds no ONNX model.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise InputError(
            f"{directory} holds no {MODEL_FILE}: give a directory written by `llama4-pipeline export`"
        )
    try:
        return ir.load(path)
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX model ({error}): export it again") from error


def rows(tensor: ir.TensorProtocol, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` (axis 0) of a weight; of an external tensor only these are read."""
    return np.asarray(tensor.numpy()[start:stop])


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The graph with its external weights as inputs, for tools that would otherwise read or refuse the weights.

    onnxsim would hold the model in memory twice; onnx.checker takes a data file with several hard links, which is how
    stages share weights, for an attack.
    """
    graph = model.graph
    external = [v for v in graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    names = {value.name for value in (*external, *graph.inputs)}  # an input with a default is no constant
    proto = ir.serde.serialize_model(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    known = {value.name for value in proto.graph.input}
    proto.graph.input.extend(ir.serde.serialize_value(value) for value in external if value.name not in known)
    return proto


def save_graph(model: ir.Model, out: Path, *, share_weights: bool) -> None:
    """Writes a graph directory.

    Args:
        model: its large initializers may be external, piecewise or in memory.
        out: directory, made when missing.
        share_weights: tensors that already lie in a data file stay there and the file is hard-linked into `out`
            (copied across devices), so that a stage that changes the graph alone writes no weights. Otherwise all
            are written to a new data file.
    """
    out.mkdir(parents=True, exist_ok=True)
    initializers = list(model.graph.initializers.values())
    shared = {
        value.const_value.location: Path(value.const_value.path)
        for value in initializers
        if share_weights and isinstance(value.const_value, ir.ExternalTensor)
    }
    for location, path in shared.items():
        if path.is_file():  # a graph written without its weights names a file that is not there
            link_or_copy(path, out / location)
    large = [value for value in initializers if _goes_outside(value.const_value, set(shared))]
    kept = {value.name: value.const_value for value in initializers}
    location = _free_name(set(shared))
    if large:
        with (
            (out / location).open("wb") as file,
            Progress("write weights", len(large), "tensors") as progress,
        ):
            for value in large:
                value.const_value = _append(file, value, out, location)
                progress.advance()
            file.flush()
            os.fsync(file.fileno())
    proto = ir.serde.serialize_model(model)
    for value in initializers:
        value.const_value = kept[value.name]
    (out / MODEL_FILE).write_bytes(proto.SerializeToString())


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links a file, or copies it where the file system cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _free_name(taken: set[str]) -> str:
    names = (DATA_FILE, *(f"{DATA_FILE}.{n}" for n in range(1, len(taken) + 1)))
    return next(name for name in names if name not in taken)


def _goes_outside(tensor: ir.TensorProtocol | None, shared: set[str]) -> bool:
    """Weights always do; a constant made by a graph stage does when it is large."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.location not in shared
    return isinstance(tensor, PiecewiseTensor) or (tensor is not None and tensor.nbytes >= _INLINE_BYTES)


def _append(file: BinaryIO, value: ir.Value, out: Path, location: str) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    file.write(b"\0" * (-file.tell() % (_PAGE if tensor.nbytes >= _PAGE else _WORD)))
    offset = file.tell()
    for piece in _pieces_of(tensor):
        np.ascontiguousarray(piece).tofile(file)
    length = file.tell() - offset
    if length != tensor.nbytes:
        raise ValueError(f"{value.name}: {length} bytes written, {tensor.nbytes} expected")
    return ir.ExternalTensor(
        location,
        offset,
        length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=value.name or "",
        base_dir=out,
    )


def _pieces_of(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    if isinstance(tensor, PiecewiseTensor):
        yield from tensor.pieces()
    elif isinstance(tensor, ir.ExternalTensor):
        whole = np.memmap(tensor.path, np.uint8, "r", tensor.offset or 0, (tensor.nbytes,))
        for start in range(0, tensor.nbytes, _PIECE_BYTES):
            yield whole[start : start + _PIECE_BYTES]
    else:
        yield np.frombuffer(tensor.tobytes(), np.uint8)
