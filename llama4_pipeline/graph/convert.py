"""A float32 graph to float16: weights, activations and cache; logits leave in float32.

What is computed from integers alone (masks) stays in float32, as float16 counts exactly to 2048 only, and is cast where
it meets a float16 value. Norms and softmax compute in float32 inside their kernels. ONNX Runtime's CPU has no float16
kernel of MoE, so experts in float16 are for CUDA.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import initializer_bytes, load_graph, save_graph
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor, StreamedTensor

_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)
_NO_CPU_KERNEL = {"MoE"}
_BLOCK_WEIGHTS = 1 << 24
_NO_FLOAT_OUTPUT = {
    "Shape",
    "Size",
    "ArgMax",
    "ArgMin",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
}
_NEVER_HALF = {  # integer indices; statistics that the kernel keeps in float32
    ("TopK", 1),
    ("SkipSimplifiedLayerNormalization", 1),
    ("SkipSimplifiedLayerNormalization", 2),
}


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        weights: initializers turned to float16.
        stayed_float32: nodes that compute in float32 still, by name.
        casts: Cast nodes put in where the two meet, the one of the logits among them.
        bytes_before: of all initializers.
        bytes_after: of all initializers.
        no_cpu_kernel: operators of the graph that ONNX Runtime's CPU does not run in float16.
    """

    weights: int
    stayed_float32: tuple[str, ...]
    casts: int
    bytes_before: int
    bytes_after: int
    no_cpu_kernel: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def convert_to_float16(graph: Path, out: Path) -> ConvertReport:
    """Writes the float16 form of a fused float32 graph directory.

    Args:
        graph: directory of the float32 graph.
        out: directory to write. Cache inputs and outputs are float16, `logits` stays float32 so that sampling and
            metrics see one type.

    Raises:
        InputError: not a graph directory, a graph that calls functions (the portable form), or a weight beyond the
            range of float16.
    """
    model = load_graph(graph)
    if model.functions:
        raise InputError(f"{graph} is the portable form: give the fused graph to convert it to float16")
    report = convert_model(model)
    save_graph(model, out, share_weights=False)
    copy_sidecars(graph, out)
    return report


def convert_model(model: ir.Model) -> ConvertReport:
    """Turns a fused float32 graph to float16 in place; weights are converted when they are written.

    Raises:
        InputError: on writing, a weight beyond the range of float16.
    """
    bytes_before = initializer_bytes(model.graph)
    conversion = _Conversion(model.graph)
    conversion.run()
    return ConvertReport(
        weights=conversion.weights,
        stayed_float32=tuple(conversion.stayed),
        casts=conversion.casts,
        bytes_before=bytes_before,
        bytes_after=initializer_bytes(model.graph),
        no_cpu_kernel=tuple(sorted({node.op_type for node in model.graph} & _NO_CPU_KERNEL)),
    )


class _Conversion:
    """One walk through the graph: a node with a float16 input computes in float16."""

    def __init__(self, graph: ir.Graph) -> None:
        self.weights, self.casts = 0, 0
        self.stayed: list[str] = []
        self._graph = graph
        self._full: set[ir.Value] = set()  # values that stay float32
        self._half: set[ir.Value] = set()
        self._in_half: dict[ir.Value, ir.Value] = {}  # float32 value -> its float16 copy

    def run(self) -> None:
        graph = self._graph
        for value in graph.inputs:
            if value.dtype is _FULL:
                self._make_half(value)
        for value in list(graph.initializers.values()):
            if value.dtype is _FULL and value.const_value is not None:
                self._start(value)
        for node in list(graph):
            self._visit(node)
        self._restore_logits()

    def _start(self, value: ir.Value) -> None:
        """Weights and tables turn to float16 at once; a scalar follows the node that reads it."""
        tensor = value.const_value
        assert tensor is not None
        if len(tensor.shape) == 0:
            self._full.add(value)
            return
        value.const_value = _half_tensor(tensor)
        self._make_half(value)
        self.weights += 1

    def _visit(self, node: ir.Node) -> None:
        if not any(value in self._half for value in node.inputs):
            if any(self._is_float32(output) for output in node.outputs):
                self._full.update(output for output in node.outputs if self._is_float32(output))
                self.stayed.append(node.name or node.op_type)
            return
        if node.op_type == "Cast":
            if node.attributes["to"].as_int() == _FULL:
                self._full.add(node.outputs[0])
            return
        for index, value in enumerate(node.inputs):
            if value in self._full:
                node.replace_input_with(index, self._half_copy(node, value))
        for index, output in enumerate(node.outputs):
            if (node.op_type, index) not in _NEVER_HALF and self._is_float32(output):
                self._make_half(output)

    def _is_float32(self, value: ir.Value) -> bool:
        """Of an untyped value: whether its node computes floats, told from its inputs."""
        if value.dtype is not None:
            return value.dtype is _FULL
        node = value.producer()
        assert node is not None
        if node.op_type == "Cast":
            return node.attributes["to"].as_int() == _FULL
        return node.op_type not in _NO_FLOAT_OUTPUT and any(
            operand in self._half or operand in self._full for operand in node.inputs
        )

    def _half_copy(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The float16 copy of a float32 value: another initializer, or a Cast."""
        if value not in self._in_half:
            copy = ir.Value(name=f"{value.name}.float16", shape=value.shape)
            if value.is_initializer():
                assert value.const_value is not None
                copy.const_value = ir.tensor(value.const_value.numpy().astype(np.float16))
                self._graph.register_initializer(copy)
            else:
                cast = ir.Node(
                    "", "Cast", [value], [ir.AttrInt64("to", _HALF)], outputs=[copy], name=copy.name
                )
                self._graph.insert_before(node, cast)
                self.casts += 1
            self._make_half(copy)
            self._in_half[value] = copy
        return self._in_half[value]

    def _restore_logits(self) -> None:
        """The first output in float32 under its name."""
        outputs = self._graph.outputs
        half = outputs[0]
        if half not in self._half:
            return
        name = half.name
        full = ir.Value(name=name, shape=half.shape, type=ir.TensorType(_FULL))
        half.name = f"{name}.float16"
        cast = ir.Node(
            "", "Cast", [half], [ir.AttrInt64("to", _FULL)], outputs=[full], name=f"{name}.float32"
        )
        self._graph.append(cast)
        outputs[0] = full
        self.casts += 1

    def _make_half(self, value: ir.Value) -> None:
        value.type = ir.TensorType(_HALF)
        self._half.add(value)


def _half_tensor(tensor: ir.TensorProtocol) -> StreamedTensor:
    """The tensor in float16, converted in pieces when it is written."""
    name = tensor.name or ""
    if not isinstance(tensor, StreamedTensor):
        tensor = PiecewiseTensor(name, tensor.dtype, tuple(tensor.shape.numpy()), partial(_blocks, tensor))
    return tensor.converted(_HALF, partial(_in_range, name=name))


def _blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    if isinstance(tensor, ir.ExternalTensor):  # onnx_ir maps no file with several hard links
        dtype, offset = tensor.dtype.numpy(), tensor.offset or 0
        for start in range(0, tensor.size, _BLOCK_WEIGHTS):
            count = min(_BLOCK_WEIGHTS, tensor.size - start)
            yield np.fromfile(tensor.path, dtype, count, offset=offset + start * dtype.itemsize)
    else:
        yield tensor.numpy()


def _in_range(weights: np.ndarray, name: str) -> np.ndarray:
    wide = weights.astype(np.float32)
    largest = max(float(wide.max()), -float(wide.min()))
    if not largest <= _LARGEST:
        raise InputError(
            f"{name} holds {largest:g}, beyond float16's {_LARGEST:g}: keep this model in float32"
        )
    return torch.from_numpy(wide).to(torch.float16).numpy()  # numpy rounds the same, one by one
