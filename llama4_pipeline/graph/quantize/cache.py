"""The key-value cache in 8 bits: a quarter of float32's memory, read by GroupQueryAttention as it is.

Keys and values of a channel share one scale, which calibration text sets; the rounding is symmetric. Keys are stored
behind RoPE, which turns a pair of channels by an angle that grows with the position: either channel comes to hold the
length of the pair, at positions that no calibration text reaches. So the lengths set the scale of both.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph, save_graph
from llama4_pipeline.graph.quantize.calibration import Calibration, graph_inputs
from llama4_pipeline.graph.session import open_session
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config
from llama4_pipeline.methods import MINIMUM_TOKENS
from llama4_pipeline.progress import Progress

_OPERATOR = "GroupQueryAttention"
_SCALES = 12  # first of the operator's inputs k_scale and v_scale
_ATTRIBUTES = (
    ir.AttrInt64("kv_cache_bit_width", 8),
    ir.AttrString("k_quant_type", "PER_CHANNEL"),
    ir.AttrString("v_quant_type", "PER_CHANNEL"),
)
_LARGEST_CODE = 127


@dataclass(frozen=True)
class CacheReport:
    """What became of the cache.

    Attributes:
        layers: attention layers, all of them in 8 bits.
        tokens: of calibration.
        bytes_per_token_before: of keys and values of all layers.
        bytes_per_token_after: the same in 8 bits.
    """

    layers: int
    tokens: int
    bytes_per_token_before: int
    bytes_per_token_after: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def quantize_cache(graph: Path, out: Path, calibration: Calibration) -> CacheReport:
    """Writes a fused graph whose cache inputs and outputs are int8.

    Args:
        graph: directory of a fused graph with a float32 cache, its weights in any precision.
        out: directory to write.
        calibration: token sequences that set the range of each channel.

    Raises:
        InputError: not a fused graph, a cache that is not float32, too little calibration, or a config.json of another
            model.
    """
    model = load_graph(graph)
    nodes = [node for node in model.graph if node.op_type == _OPERATOR]
    if not nodes:
        raise InputError(f"{graph} has no {_OPERATOR}: give a graph written by `export --form fused`")
    cached = [value for node in nodes for value in node.inputs[3:5]]
    types = {value.dtype for value in cached if value is not None}
    if ir.DataType.FLOAT16 in types:
        raise InputError(
            f"{graph} computes in float16: give a graph with a float32 cache, made with --device cpu"
        )
    if types != {ir.DataType.FLOAT}:
        raise InputError(f"{graph}: its cache has been quantized; give the graph from before")
    tokens = sum(len(sequence) for sequence in calibration.sequences)
    if tokens < MINIMUM_TOKENS:
        raise InputError(
            f"{tokens} tokens of calibration: the ranges of keys and values want {MINIMUM_TOKENS}; give more text"
        )
    largest = _largest_by_channel(graph, model, calibration.cut_for(model))
    channels = 0
    for node in nodes:
        past, present = node.inputs[3:5], node.outputs[1:3]
        scales = [_scale(model.graph, str(value.name), largest[str(value.name)]) for value in present]
        channels += sum(scale.shape.numpy()[0] for scale in scales if scale.shape)
        node.resize_inputs(_SCALES + 2)
        for index, scale in enumerate(scales, start=_SCALES):
            node.replace_input_with(index, scale)
        node.attributes.update({attribute.name: attribute for attribute in _ATTRIBUTES})
        for value in (*past, *present):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)
    save_graph(model, out, share_weights=False)
    copy_sidecars(graph, out)
    return CacheReport(len(nodes), tokens, 4 * channels, channels)


def _largest_by_channel(graph: Path, model: ir.Model, calibration: Calibration) -> dict[str, np.ndarray]:
    """Largest magnitude that each channel can hold, float32 [K D], by the name of the present tensor."""
    session = open_session(model, graph)
    names = [output.name for output in session.get_outputs() if output.name.startswith("present.")]
    layers = Architecture.from_config(read_text_config(graph)).layers
    rotated = {f"present.{layer.index}.key" for layer in layers if layer.uses_rope}
    if missing := sorted(rotated - set(names)):
        raise InputError(
            f"{graph} has no {missing[0]}: its config.json is another model's; put its own there"
        )
    largest: dict[str, np.ndarray] = {}
    with Progress("calibrate the cache", len(calibration.sequences), "sequences") as progress:
        for sequence in calibration.sequences:
            found = session.run(names, graph_inputs(model.graph, sequence))
            for name, tensor in zip(names, found, strict=True):
                lengths = _pair_lengths(tensor) if name in rotated else np.abs(tensor)
                magnitude = lengths.max(axis=(0, 2)).reshape(-1)  # of [1, K, T, D]
                largest[name] = np.maximum(largest.get(name, 0), magnitude)
            progress.advance()
    return largest


def _pair_lengths(keys: np.ndarray) -> np.ndarray:
    """For each channel the length of the pair that the rotation turns it in, in the shape of the keys [..., D]."""
    return np.hypot(keys[..., 0::2], keys[..., 1::2]).repeat(2, axis=-1)


def _scale(graph: ir.Graph, name: str, largest: np.ndarray) -> ir.Value:
    tensor = ir.tensor((np.maximum(largest, np.finfo(np.float16).tiny) / _LARGEST_CODE).astype(np.float32))
    value = ir.Value(
        name=f"{name}.scale",
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
