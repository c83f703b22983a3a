"""A float32 graph to float16: weights, activations and cache; logits leave in float32.

Norms and softmax compute in float32 inside their kernels; positions and lengths are integers throughout. ONNX Runtime's
CPU has no float16 kernel of MoE, so experts in float16 are for CUDA.
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
from llama4_pipeline.graph.external_data import initializer_bytes, load_fused_graph, read_elements, save_graph
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor, StreamedTensor
from llama4_pipeline.llama4.weights import require_float16_range

QUANTIZED_OPERATORS = frozenset(
    {"MatMulNBits", "QMoE", "GatherBlockQuantized", "MatMulInteger", "DequantizeLinear"}
)
_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_NO_CPU_KERNEL = {"MoE"}
_BLOCK_WEIGHTS = 1 << 24
# Statistics that the kernel keeps in float32.
_NEVER_HALF = {("SkipSimplifiedLayerNormalization", 1), ("SkipSimplifiedLayerNormalization", 2)}


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        weights: initializers turned to float16.
        bytes_before: of all initializers.
        bytes_after: of all initializers.
        no_cpu_kernel: operators of the graph that ONNX Runtime's CPU does not run in float16.
    """

    weights: int
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
        InputError: not a fused graph's directory, a graph that is in float16 or quantized already or has its cache in 8
            bits, or a weight beyond the range of float16.
    """
    model = load_fused_graph(graph)
    require_convertible(model, graph)
    return write_float16(model, graph, out)


def write_float16(model: ir.Model, graph: Path, out: Path) -> ConvertReport:
    """`convert_to_float16` for a model whose weights may be quantized: what is float32 in it becomes float16.

    Args:
        model: a fused graph with a float32 cache; changed in place.
        graph: its directory, whose other files are copied.
        out: directory to write.

    Raises:
        InputError: a weight beyond the range of float16.
    """
    report = convert_model(model)
    save_graph(model, out, share_weights=False)
    copy_sidecars(graph, out)
    return report


def require_convertible(model: ir.Model, graph: Path) -> None:
    """Refuses what `convert_to_float16` does not take.

    Args:
        model: a fused graph.
        graph: its directory, for the message.

    Raises:
        InputError: it is in float16 or quantized already, or has its cache in 8 bits.
    """
    if is_float16(model):
        raise InputError(f"{graph} is in float16 already: give the float32 graph that it was made from")
    if any(value.dtype is ir.DataType.INT8 for value in model.graph.inputs):
        raise InputError(f"{graph} has its cache in 8 bits: give the graph before its cache was converted")
    require_unquantized(model, graph)


def require_unquantized(model: ir.Model, graph: Path) -> None:
    """Refuses a graph whose weights have fewer bits than a float.

    Args:
        model: a fused graph.
        graph: its directory, for the message.

    Raises:
        InputError: names the operators that read such weights.
    """
    if quantized := sorted({node.op_type for node in model.graph} & QUANTIZED_OPERATORS):
        raise InputError(
            f"{graph} is quantized already, by {', '.join(quantized)}: give the float graph that it was made from"
        )


def is_float16(model: ir.Model) -> bool:
    """Whether a graph has its cache, and so computes, in float16."""
    return any(value.dtype is _HALF for value in model.graph.inputs)


def convert_model(model: ir.Model) -> ConvertReport:
    """Turns a fused float32 graph to float16 in place; weights are converted when they are written.

    Raises:
        InputError: on writing, a weight beyond the range of float16.
    """
    graph, weights = model.graph, 0
    bytes_before = initializer_bytes(graph)
    for value in graph.inputs:
        _make_half(value)
    for value in graph.initializers.values():
        if value.dtype is _FULL and value.const_value is not None:
            value.const_value = _half_tensor(value.const_value)
            _make_half(value)
            weights += 1
    for node in graph:
        for index, output in enumerate(node.outputs):
            if (node.op_type, index) not in _NEVER_HALF:
                _make_half(output)
    _restore_logits(graph)
    return ConvertReport(
        weights=weights,
        bytes_before=bytes_before,
        bytes_after=initializer_bytes(graph),
        no_cpu_kernel=tuple(sorted({node.op_type for node in graph} & _NO_CPU_KERNEL)),
    )


def _make_half(value: ir.Value) -> None:
    if value.dtype is _FULL:
        value.type = ir.TensorType(_HALF)


def _restore_logits(graph: ir.Graph) -> None:
    """The first output in float32 under its name."""
    half = graph.outputs[0]
    name = half.name
    full = ir.Value(name=name, shape=half.shape, type=ir.TensorType(_FULL))
    half.name = f"{name}.float16"
    cast = ir.Node("", "Cast", [half], [ir.AttrInt64("to", _FULL)], outputs=[full], name=f"{name}.float32")
    graph.append(cast)
    graph.outputs[0] = full


def _half_tensor(tensor: ir.TensorProtocol) -> StreamedTensor:
    """The tensor in float16, converted in pieces when it is written."""
    name = tensor.name or ""
    if not isinstance(tensor, StreamedTensor):
        tensor = PiecewiseTensor(name, tensor.dtype, tuple(tensor.shape.numpy()), partial(_blocks, tensor))
    return tensor.converted(_HALF, partial(_in_range, name=name))


def _blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    if isinstance(tensor, ir.ExternalTensor):
        for start in range(0, tensor.size, _BLOCK_WEIGHTS):
            yield read_elements(tensor, start, min(_BLOCK_WEIGHTS, tensor.size - start))
    else:
        yield tensor.numpy()


def _in_range(weights: np.ndarray, name: str) -> np.ndarray:
    wide = weights.astype(np.float32)
    require_float16_range(wide, name, "keep this model in float32")
    return torch.from_numpy(wide).to(torch.float16).numpy()  # numpy rounds the same, one by one
