"""What memory allows: bytes that one decoded token must read, over the machine's read bandwidth."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config
from llama4_pipeline.metadata import GGUF_CONFIG_KEY

_EXPERT_OPERATORS = ("MoE", "QMoE")
# They read an embedding, or a table of angles, by row.
_ROW_OPERATORS = ("Gather", "GatherBlockQuantized", "RotaryEmbedding", "GroupQueryAttention")

_PASSING_OPERATORS = ("Reshape", "DequantizeLinear")  # the second reads what its reader wants
_INT8_OPERATORS = {"MatMulInteger", "DequantizeLinear"}  # of ONNX Runtime's own quantizer


@dataclass(frozen=True)
class StoredModel:
    """A model as an engine stores it.

    Attributes:
        weight_bytes: All weights.
        active_bytes: The weights that one token at batch 1 needs: the chosen experts and one row of the embedding.
        precision: float32, float16, bfloat16, int8 or int4; of a GGUF file its own word, as Q8_0.
        cache_element_bytes: Of one key or value in the cache.
    """

    weight_bytes: int
    active_bytes: int
    precision: str
    cache_element_bytes: int


def stored_checkpoint(architecture: Architecture, dtype: str) -> StoredModel:
    """A checkpoint loaded as `dtype` ("float32", "bfloat16", "float16"), its cache too."""
    element_bytes = 4 if dtype == "float32" else 2
    active = architecture.active_weight_bytes(8 * element_bytes)
    return StoredModel(architecture.parameters() * element_bytes, active, dtype, element_bytes)


def stored_graph(graph: Path) -> StoredModel:
    """Weights of a graph directory, from its structure alone: the data file is not read.

    An expert tensor counts by the share of experts that a token chooses, a tensor that is only looked up by row
    counts one row, everything else counts whole.

    Args:
        graph: directory with model.onnx and config.json.
    """
    import onnx

    model = onnx.load(str(graph / "model.onnx"), load_external_data=False)
    architecture = graph_architecture(graph)
    readers = _readers(model.graph)
    stored = active = 0.0
    for tensor in {_storage(tensor): tensor for tensor in model.graph.initializer}.values():
        size = _tensor_bytes(tensor)
        stored += size
        nodes = _behind(readers.get(tensor.name, []), readers)
        active += size * _share_read(tensor, nodes, architecture.experts_per_token)
    cached = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
    element_bytes = onnx.helper.tensor_dtype_to_np_dtype(cached.type.tensor_type.elem_type).itemsize
    return StoredModel(int(stored), math.ceil(active), _precision(model), element_bytes)


@dataclass(frozen=True)
class NodeWeights:
    """What one node of a graph reads for a token: bytes, and the shape of the matrix it multiplies with, as "K x N"."""

    read_bytes: float
    shape: str


def bytes_by_node(graph: Path) -> dict[str, NodeWeights]:
    """Weights that each node reads for one token at batch 1, by the node's name; counted as `stored_graph` does."""
    import onnx

    model = onnx.load(str(graph / "model.onnx"), load_external_data=False)
    chosen = graph_architecture(graph).experts_per_token
    readers = _readers(model.graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    # Of a fused graph, one node for each expert that a token chooses; each has the scales under a name of its own.
    sharing = Counter(
        _storage(tensors[name])
        for node in model.graph.node
        if node.op_type in _EXPERT_OPERATORS
        for name in node.input
        if name in tensors
    )
    found = {}
    for node in model.graph.node:
        read = [tensors[name] for name in node.input if name in tensors]
        nodes = _behind([node], readers)
        size = sum(
            _tensor_bytes(tensor) * _share_read(tensor, nodes, chosen) / max(sharing[_storage(tensor)], 1)
            for tensor in read
        )
        found[node.name] = NodeWeights(size, _matrix(node))
    return found


def stored_gguf(file: Path) -> tuple[StoredModel, Architecture] | None:
    """Weights of a GGUF file and its model, from the header; None for a file that `write_gguf` did not write."""
    import gguf

    reader = gguf.GGUFReader(file)
    config = reader.get_field(GGUF_CONFIG_KEY)
    if config is None:
        return None
    architecture = Architecture.from_config(json.loads(config.contents()))
    stored = active = 0.0
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    for tensor in reader.tensors:
        stored += tensor.n_bytes
        share = 1.0
        if "_exps." in tensor.name:
            share = architecture.experts_per_token / int(tensor.shape[-1])
        elif tensor.name == "token_embd.weight" and not tied:
            share = 1 / int(tensor.shape[-1])
        active += tensor.n_bytes * share
    kind = max(reader.tensors, key=lambda tensor: tensor.n_elements).tensor_type
    return StoredModel(
        int(stored), math.ceil(active), kind.name, 4 if kind.name == "F32" else 2
    ), architecture


def graph_architecture(graph: Path) -> Architecture:
    """What the config.json beside a graph describes."""
    return Architecture.from_config(read_text_config(graph))


def cache_read_bytes(
    architecture: Architecture, prompt_tokens: int, new_tokens: int, element_bytes: int
) -> int:
    """Mean bytes of keys and values that a decode step sees at batch 1; a chunked layer sees its chunk only."""
    positions = np.arange(prompt_tokens, prompt_tokens + new_tokens - 1)
    per_token = 2 * architecture.num_key_value_heads * architecture.head_dim * element_bytes
    seen = sum(
        float(np.mean(positions % (layer.chunk_size or positions[-1] + 1) + 1))
        for layer in architecture.layers
    )
    return int(seen * per_token)


def roofline_share(bytes_per_token: int, bytes_per_second: float, step_ms: float) -> float:
    """The least time a step can take over the time it takes: 1 is as fast as memory allows."""
    return bytes_per_token / bytes_per_second / (step_ms / 1000)


def _matrix(node: Any) -> str:
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return f"{sizes['K']} x {sizes['N']}" if "K" in sizes and "N" in sizes else ""


def _readers(graph: Any) -> dict[str, list[Any]]:
    """The nodes that take each value, by its name."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _behind(nodes: list[Any], readers: dict[str, list[Any]]) -> list[Any]:
    """`nodes`; for one that only passes its input on, those that take its output."""
    return [
        reader
        for node in nodes
        for reader in (readers.get(node.output[0], []) if node.op_type in _PASSING_OPERATORS else [node])
    ]


def _share_read(tensor: Any, readers: list[Any], experts_per_token: int) -> float:
    operators = {node.op_type for node in readers}
    if tensor.dims and operators and operators <= set(_ROW_OPERATORS):
        return 1 / tensor.dims[0]
    if ".experts." in tensor.name or operators & set(_EXPERT_OPERATORS):
        return experts_per_token / tensor.dims[0]
    return 1.0


def _storage(tensor: Any) -> tuple[str, ...]:
    """The same for initializers that are the same bytes of a data file."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return (place["location"], place.get("offset", "0"), place["length"]) if place else (tensor.name,)


def _tensor_bytes(tensor: Any) -> float:
    import onnx

    four_bit = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    bits = (
        4
        if tensor.data_type in four_bit
        else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    return math.prod(tensor.dims) * bits / 8


def _precision(model: Any) -> str:
    """The fewest bits that a quantized product uses; without one, the type of the largest initializer."""
    import onnx

    bits = {
        attribute.i
        for node in model.graph.node
        if node.op_type in ("MatMulNBits", "QMoE")
        for attribute in node.attribute
        if attribute.name in ("bits", "expert_weight_bits")
    }
    if bits:
        return f"int{min(bits)}"
    if any(node.op_type in _INT8_OPERATORS for node in model.graph.node):
        return "int8"
    largest = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    return str(onnx.helper.tensor_dtype_to_np_dtype(largest.data_type))
