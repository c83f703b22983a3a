"""What memory and disk each stage needs for a model, computed from its architecture; nothing is typed by hand."""

import math
from dataclasses import dataclass

from llama4_pipeline.llama4.architecture import Architecture

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GRAPH_BYTES = 4  # the exported graph computes in float32
# Bits of a weight with its share of scale and zero point: in an expert (float16 scales), elsewhere (float32 scales).
_GRAPH_BITS = {
    "exported_graph": (32, 32),
    "fp16_graph": (16, 16),
    "int8_graph": (8.25, 8.5),
    "int4_graph": (4.625, 5.125),
}
_PROCESS_BYTES = 1 << 30  # a Python process with torch and ONNX Runtime
_ROWS_BYTES = 32 << 20  # a piece of a matrix that is no expert
_BLOCK_BYTES = 64 << 20  # a piece of a float32 graph
_TRAINING_BYTES = 16  # of one weight: itself, its gradient, two moments, float32 each
_MEASURED = {"pytorch_baseline", "benchmarks"}
_VALIDATED = {"validated_graph", "simplified_graph", "optimized_graph"}
_STREAMED = {
    "exported_graph",
    "fp16_graph",
    "int8_graph",
    "int4_graph",
}


@dataclass(frozen=True)
class Needs:
    """Bytes of memory while a stage runs, and of disk for what it leaves.

    Attributes:
        memory_bytes: Main memory, where the stage computes on the CPU.
        disk_bytes: What it leaves.
        device_bytes: Memory of the GPU, where it computes there; main memory then holds the process alone.
    """

    memory_bytes: int
    disk_bytes: int
    device_bytes: int = 0

    def on_gpu(self) -> "Needs":
        """The needs of the same stage where it computes on the GPU."""
        return Needs(min(self.memory_bytes, _PROCESS_BYTES), self.disk_bytes, self.device_bytes)


@dataclass(frozen=True)
class Demand:
    """What decides how much a model needs.

    Attributes:
        architecture: Its layers and widths.
        source: "trained", "random", "hub" or "local".
        dtype: What its checkpoint is stored in.
        cached_tokens: Tokens of KV cache that a measurement fills, over all rows of its largest batch.
        trained: Whether a conversion trains the model beside its float original.
        run: Whether the stage runs the whole model in float32 over texts.
    """

    architecture: Architecture
    source: str
    dtype: str
    cached_tokens: int
    trained: bool = False
    run: bool = False


def needs(demand: Demand, stage: str) -> Needs:
    """Memory and disk of one stage.

    An estimate from above, to refuse a stage before it starts: weights at the width they have in that stage, the
    KV cache where a model runs, and the process itself. Graphs share one data file until weights change.

    Args:
        demand: The model.
        stage: Name of a stage of the pipeline; one that handles no weights needs a process only.
    """
    memory = math.ceil(_memory(demand, stage))
    device = memory - _PROCESS_BYTES if stage in _MEASURED else 0
    return Needs(memory, math.ceil(_disk(demand, stage)), device)


def conversion_needs(graph_bytes: int, precision: str, trained: bool = False) -> Needs:
    """What it takes to convert a float32 graph of so many bytes to "fp16", "int8" or "int4".

    Args:
        graph_bytes: Of the graph's files.
        precision: To make.
        trained: Whether the checkpoint is trained for it, beside its float original.
    """
    _, bits = _GRAPH_BITS[f"{precision}_graph"]
    training = graph_bytes / _GRAPH_BYTES * (_TRAINING_BYTES + _GRAPH_BYTES) if trained else 0
    memory = _PROCESS_BYTES + 3 * _BLOCK_BYTES + math.ceil(training)
    return Needs(memory, math.ceil(graph_bytes / 32 * bits))


def whole_validation_bytes(architecture: Architecture) -> int:
    """Memory to hold PyTorch's model and ONNX Runtime's side by side, in float32."""
    return _PROCESS_BYTES + 2 * architecture.parameters() * _GRAPH_BYTES


def _memory(demand: Demand, stage: str) -> float:
    parameters = demand.architecture.parameters()
    stored = parameters * _DTYPE_BYTES[demand.dtype]
    cache = demand.architecture.kv_cache_bytes(demand.cached_tokens)
    if stage == "checkpoint" and demand.source == "trained":
        return _PROCESS_BYTES + parameters * _TRAINING_BYTES
    if demand.trained:
        return _PROCESS_BYTES + parameters * (_TRAINING_BYTES + _GRAPH_BYTES)
    if demand.run:
        return whole_validation_bytes(demand.architecture)
    if stage == "pytorch_baseline":
        return _PROCESS_BYTES + stored + cache
    if (
        stage in _VALIDATED
    ):  # one layer at least: PyTorch's in float32, then ONNX Runtime's with a packed copy
        layer = _largest_layer(demand.architecture) * _GRAPH_BYTES
        return min(whole_validation_bytes(demand.architecture), _PROCESS_BYTES + 2 * layer)
    if stage == "benchmarks":  # one engine at a time; what does not fit is a row that says so
        return _PROCESS_BYTES + _disk(demand, "int4_graph") + cache
    if stage in _STREAMED:
        return _PROCESS_BYTES + 3 * _largest_piece(demand)
    return _PROCESS_BYTES


def _disk(demand: Demand, stage: str) -> float:
    parameters = demand.architecture.parameters()
    if stage == "checkpoint" and demand.source in ("trained", "hub"):
        return parameters * _DTYPE_BYTES[demand.dtype]
    expert_bits, bits = _GRAPH_BITS.get(stage, (0, 0))
    experts = sum(map(math.prod, _expert_stacks(demand.architecture)))
    return (experts * expert_bits + (parameters - experts) * bits) / 8


def _expert_stacks(architecture: Architecture) -> list[tuple[int, ...]]:
    return [shape for shape in architecture.checkpoint_tensors().values() if len(shape) == 3]


def _largest_layer(architecture: Architecture) -> int:
    """Weights of the largest layer."""
    weights: dict[str, int] = {}
    for name, shape in architecture.checkpoint_tensors().items():
        if name.startswith("model.layers."):
            layer = name.split(".")[2]
            weights[layer] = weights.get(layer, 0) + math.prod(shape)
    return max(weights.values())


def _largest_piece(demand: Demand) -> int:
    """Bytes of the largest piece that a stream holds: one expert of a stack as stored, or a run of rows."""
    width = _DTYPE_BYTES[demand.dtype]
    experts = [math.prod(shape[1:]) * width for shape in _expert_stacks(demand.architecture)]
    return max(experts, default=0) + _ROWS_BYTES
