"""Graphs on disk: `model.onnx` beside its weights, written piece by piece, read by memory map, shared by hard link."""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.graph.streamed_tensor import Advance, StreamedTensor
from llama4_pipeline.metadata import FORM_KEY
from llama4_pipeline.progress import Progress

MODEL_FILE = "model.onnx"
_DATA_FILE = "model.onnx.data"
_INLINE_BYTES = 1024  # smaller constants stay in model.onnx, where graph tools see their values
_PAGE = 4096  # ONNX Runtime maps tensors that begin at a page (onnx/docs/ExternalData.md)
_WORD = 64  # alignment of tensors smaller than a page
_PIECE_BYTES = 64 << 20


def load_graph(directory: Path) -> ir.Model:
    """Reads `model.onnx` of a graph directory; weights stay on disk, mapped when they are looked at.

    Raises:
        InputError: the directory holds no ONNX model, or one whose weights would lie elsewhere.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise InputError(
            f"{directory} holds no {MODEL_FILE}: give a directory written by `llama4-pipeline export`"
        )
    try:
        model = ir.load(path)
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX model ({error}): export it again") from error
    if not model.graph.outputs:
        raise InputError(f"{path} holds no graph: export it again")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            _require_inside(path, value.name, PurePath(value.const_value.location))
    return model


def load_fused_graph(directory: Path) -> ir.Model:
    """`load_graph` of a fused graph, which is what has other precisions.

    Raises:
        InputError: as `load_graph`, the portable form, or a graph of another's making.
    """
    model = load_graph(directory)
    if (form := model.metadata_props.get(FORM_KEY)) != "fused":
        found = "is the portable form" if form == "portable" else "holds no graph of this pipeline"
        raise InputError(f"{directory} {found}: give a graph written by `export --form fused`")
    return model


def require_valid(directory: Path, model: ir.Model) -> None:
    """Runs onnx.checker on the model of a graph directory; weights are not looked at.

    Raises:
        InputError: it refuses the graph.
    """
    try:
        onnx.checker.check_model(skeleton(model))
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{directory}: onnx.checker refuses the graph ({one_line(error)}); export it again"
        ) from error


def require_weights(directory: Path, model: ir.Model) -> None:
    """Refuses a graph without its weights, or with a part of them.

    Raises:
        InputError: names the file.
    """
    ends: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            if tensor.length not in (None, tensor.nbytes):
                raise InputError(
                    f"{directory}: {value.name} takes {tensor.nbytes} bytes, of which the graph names {tensor.length}; "
                    "export it again"
                )
            end = (tensor.offset or 0) + tensor.nbytes
            ends[str(tensor.location)] = max(end, ends.get(str(tensor.location), 0))
    for location, end in ends.items():
        file = directory / location
        if not file.is_file():
            raise InputError(
                f"{directory} lacks its weights, {location}: export it again, without --no-weights"
            )
        if file.stat().st_size < end:
            raise InputError(
                f"{file} has {file.stat().st_size} bytes of {end}: export it again, or copy it whole"
            )


def read_elements(tensor: ir.ExternalTensor, start: int, count: int) -> np.ndarray:
    """A run of a tensor's elements, flat.

    Read, not mapped: onnx_ir maps no file with several hard links, which is how stages share weights, and a mapped
    file's pages would count as ours.
    """
    dtype = tensor.dtype.numpy()
    return np.fromfile(tensor.path, dtype, count, offset=(tensor.offset or 0) + start * dtype.itemsize)


def initializer_bytes(graph: ir.Graph) -> int:
    """What the weights and constants of a graph take, on disk or still to be written."""
    tensors = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    return _bytes_once(tensors)


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The graph with its external weights as inputs, for tools that would otherwise read or refuse the weights.

    onnxsim would hold the model in memory twice; onnx.checker takes a data file with several hard links, which is how
    stages share weights, for an attack.
    """
    graph = model.graph
    external = [
        value
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor | StreamedTensor)
    ]
    names = {value.name for value in (*external, *graph.inputs)}  # an input with a default is no constant
    with _replaced({value: _external(value, 0, _DATA_FILE, Path()) for value in external}):
        proto = ir.serde.serialize_model(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    known = {value.name for value in proto.graph.input}
    proto.graph.input.extend(ir.serde.serialize_value(value) for value in external if value.name not in known)
    return proto


def check_graph(model: ir.Model) -> None:
    """Runs onnx.checker and shape inference on the graph; weights are not looked at.

    Raises:
        ValueError: onnx refuses the graph.
    """
    try:
        proto = skeleton(model)
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"onnx refuses the graph: {error}") from error


def save_graph(model: ir.Model, out: Path, *, share_weights: bool, with_weights: bool = True) -> None:
    """Writes a graph directory.

    Args:
        model: its large initializers may be external, streamed or in memory.
        out: directory, made when missing.
        share_weights: tensors that already lie in a data file stay there and the file is hard-linked into `out`
            (copied across devices), so that a stage that changes the graph alone writes no weights. Otherwise all
            are written to a new data file.
        with_weights: False leaves the new data file out; its tensors name their places in it all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    initializers = list(model.graph.initializers.values())
    shared = {
        str(value.const_value.location): Path(value.const_value.path)
        for value in initializers
        if share_weights and isinstance(value.const_value, ir.ExternalTensor)
    }
    for location, path in shared.items():
        if path.is_file():  # a graph written without its weights names a file that is not there
            link_or_copy(path, out / location)
    large = [value for value in initializers if _goes_outside(value.const_value, set(shared))]
    location = _free_name(set(shared))
    places = _places(large, location, out)
    if large and with_weights:
        _write_weights(out / location, places)
    with _replaced(places):
        proto = ir.serde.serialize_model(model)
    (out / MODEL_FILE).write_bytes(proto.SerializeToString())


def _free_name(taken: set[str]) -> str:
    names = (_DATA_FILE, *(f"{_DATA_FILE}.{n}" for n in range(1, len(taken) + 1)))
    return next(name for name in names if name not in taken)


def _goes_outside(tensor: ir.TensorProtocol | None, shared: set[str]) -> bool:
    """Weights always do; a constant made by a graph stage does when it is large."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.location not in shared
    return isinstance(tensor, StreamedTensor) or (tensor is not None and tensor.nbytes >= _INLINE_BYTES)


def _require_inside(path: Path, name: str | None, location: PurePath) -> None:
    """Refuses a file that a graph from outside names beyond its directory: it would be read, and linked to."""
    if location.is_absolute() or ".." in location.parts:
        raise InputError(
            f"{path}: {name} lies at {location}, outside its directory: such a graph is not read"
        )


def _storage(tensor: ir.TensorProtocol) -> Hashable:
    """The same for tensors that are the same bytes: one object, or one place in a file."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset, tensor.length
    return id(tensor)


def _bytes_once(tensors: Iterable[ir.TensorProtocol]) -> int:
    return sum({_storage(tensor): tensor.nbytes for tensor in tensors}.values())


def _places(values: list[ir.Value], location: str, out: Path) -> dict[ir.Value, ir.ExternalTensor]:
    """Where each tensor will lie in a data file; values of the same bytes have one place."""
    places: dict[ir.Value, ir.ExternalTensor] = {}
    begins: dict[Hashable, int] = {}
    end = 0
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        storage = _storage(tensor)
        if storage not in begins:
            begins[storage] = end + -end % (_PAGE if tensor.nbytes >= _PAGE else _WORD)
            end = begins[storage] + tensor.nbytes
        places[value] = _external(value, begins[storage], location, out)
    return places


def _external(value: ir.Value, offset: int, location: str, out: Path) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        base_dir=out,
    )


@contextmanager
def _replaced(
    tensors: Mapping[ir.Value, ir.ExternalTensor],
) -> Iterator[dict[ir.Value, ir.TensorProtocol | None]]:
    """Puts references in the place of weights for a while; yields what to put back, which the caller may add to."""
    kept = {value: value.const_value for value in tensors}
    for value, reference in tensors.items():
        value.const_value = reference
    try:
        yield kept
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor


def _write_weights(path: Path, places: Mapping[ir.Value, ir.ExternalTensor]) -> None:
    """Writes each tensor to its place; once written it is a reference to it, so that later ones can read it."""
    total = _bytes_once(value.const_value for value in places if value.const_value is not None)
    alike: dict[Hashable, list[ir.Value]] = {}
    for value in places:
        assert value.const_value is not None
        alike.setdefault(_storage(value.const_value), []).append(value)
    with path.open("wb") as file, _Written("write weights", total) as progress, _replaced({}) as written:
        for values in alike.values():
            tensor = values[0].const_value
            assert tensor is not None
            _write_at(places[values[0]], tensor, file, progress.advance_bytes)
            for value in values:
                written[value] = value.const_value
                value.const_value = places[value]
        os.fsync(file.fileno())


class _Written(Progress):
    """Progress told in whole megabytes, of little in kilobytes."""

    def __init__(self, task: str, total_bytes: int) -> None:
        self._unit_bytes, unit = (1_000_000, "MB") if total_bytes >= 100_000_000 else (1000, "kB")
        super().__init__(task, total_bytes // self._unit_bytes, unit)
        self._rest = 0

    def advance_bytes(self, count: int) -> None:
        """Adds bytes."""
        units, self._rest = divmod(self._rest + count, self._unit_bytes)
        self.advance(units)


def _write_at(place: ir.ExternalTensor, tensor: ir.TensorProtocol, file: BinaryIO, advance: Advance) -> None:
    offset = place.offset or 0
    file.seek(offset)
    _write(tensor, file, advance)
    if file.tell() - offset != tensor.nbytes:
        raise ValueError(f"{place.name}: {file.tell() - offset} bytes written, {tensor.nbytes} expected")
    file.flush()


def _write(tensor: ir.TensorProtocol, file: BinaryIO, advance: Advance) -> None:
    if isinstance(tensor, StreamedTensor):
        tensor.write(file, advance)
    elif isinstance(tensor, ir.ExternalTensor):
        for start in range(0, tensor.nbytes, _PIECE_BYTES):  # not mapped: mapped pages would count as ours
            count = min(_PIECE_BYTES, tensor.nbytes - start)
            np.fromfile(tensor.path, np.uint8, count, offset=(tensor.offset or 0) + start).tofile(file)
            advance(count)
    else:
        advance(file.write(tensor.tobytes()))
