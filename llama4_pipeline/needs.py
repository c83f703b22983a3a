"""What memory and disk each stage needs for a model, computed from its architecture; nothing is typed by hand."""

import math
from dataclasses import dataclass

from llama4_pipeline.device import pytorch_dtype
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.methods import (
    MIXED,
    QAT,
    QDQ_DYNAMIC,
    QDQ_STATIC,
    SENSITIVITY_TOKENS,
    STATISTICS_TOKENS,
)

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GRAPH_BYTES = 4  # the exported graph computes in float32
_GPU_GRAPH_BYTES = 2
# Bits of a weight with its share of scale: in an expert, in the embedding, elsewhere.
_GRAPH_BITS = {
    "exported_graph": (32, 32, 32),
    "fp16_graph": (16, 16, 16),
    "int8_graph": (8.25, 10, 9.25),
    "int4_graph": (4.625, 9, 5.125),
}
_PROCESS_BYTES = 1 << 30  # a Python process with torch and ONNX Runtime
_ROWS_BYTES = 32 << 20  # a piece of a matrix that is no expert
_BLOCK_BYTES = 64 << 20  # a piece of a float32 graph
_TRAINING_BYTES = 16  # of one weight: itself, its gradient, two moments, float32 each
_ORT_METHODS = (QDQ_DYNAMIC, QDQ_STATIC)
_ORT_BITS = (32, 8.5, 8.5)
_LAYERS = "model.layers."
_MOMENTS = 16  # matrices as wide as the widest: the second moments of a layer's inputs, and what is computed from one
_STATES = 7  # hidden states of a token, between two layers and within one, behind rounded layers and behind float ones
_MEASURED = {"pytorch_baseline", "benchmarks"}
_VALIDATED = {"validated_graph", "simplified_graph", "optimized_graph"}


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
class Conversion:
    """A float32 graph in fewer bits.

    Attributes:
        precision: "fp16", "int8" or "int4".
        method: Of quantization, a name of `METHODS`; None for fp16.
        calibrated: Whether calibration tokens run through the graph.
        device: Whose kernels are to run it; for "cuda" it is turned to float16 behind the quantization.
    """

    precision: str
    method: str | None = None
    calibrated: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Demand:
    """What decides how much a model needs.

    Attributes:
        architecture: Its layers and widths.
        source: "trained", "random", "hub" or "local".
        dtype: What its checkpoint is stored in.
        cached_tokens: Tokens of KV cache that a measurement fills, over all rows of its largest batch.
        conversions: Of the float32 graph that the stage makes, one after the other.
        run: Whether the stage runs the whole model in float32 over texts.
    """

    architecture: Architecture
    source: str
    dtype: str
    cached_tokens: int
    conversions: tuple[Conversion, ...] = ()
    run: bool = False


def needs(demand: Demand, stage: str) -> Needs:
    """Memory and disk of one stage.

    An estimate from above, to refuse a stage before it starts: weights at the width they have in that stage, the
    KV cache where a model runs, and the process itself. Graphs share one data file until weights change.

    Args:
        demand: The model.
        stage: Name of a stage of the pipeline; one that handles no weights needs a process only.
    """
    converted = [conversion_needs(demand.architecture, conversion) for conversion in demand.conversions]
    beside = demand.architecture.parameters() * _GRAPH_BYTES if demand.run else 0  # PyTorch's model
    memory = max([math.ceil(_memory(demand, stage)), *(needed.memory_bytes + beside for needed in converted)])
    disk = max([math.ceil(_disk(demand, stage)), *(needed.disk_bytes for needed in converted)])
    device = math.ceil(_measuring(demand, stage, "cuda")) if stage in _MEASURED else 0
    return Needs(memory, disk, device)


def conversion_needs(architecture: Architecture, conversion: Conversion) -> Needs:
    """What it takes to convert a model's float32 graph, temporary files on the disk of the result included."""
    whole = architecture.parameters() * _GRAPH_BYTES
    bits = _GRAPH_BITS[f"{conversion.precision}_graph"]
    disk = _graph_bytes(architecture, *bits)
    if conversion.precision == "int4" and architecture.tie_word_embeddings:  # the head gets 4 bits of its own
        disk += architecture.vocab_size * architecture.hidden_size * bits[-1] / 8
    memory = 3 * _BLOCK_BYTES
    if conversion.calibrated:
        memory += _layer_by_layer(architecture)
    if conversion.method == MIXED:
        memory = max(memory, whole + _sensitivity(architecture))
    elif conversion.method == QAT:  # trained beside its float original, then written as a checkpoint
        memory = architecture.parameters() * (_TRAINING_BYTES + _GRAPH_BYTES)
        disk += whole
    elif conversion.method in _ORT_METHODS:
        # A copy is loaded whole; the result, experts in float, is written twice.
        memory = 3 * whole
        disk = whole + 2 * _graph_bytes(architecture, *_ORT_BITS)
    if conversion.device == "cuda" and conversion.method != QAT:
        disk *= 2
    return Needs(_PROCESS_BYTES + math.ceil(memory), math.ceil(disk))


def position_table_bytes(architecture: Architecture, max_context: int, *, half: bool) -> int:
    """Disk for what a fused graph holds of each position: cosines and sines, and a temperature.

    Args:
        architecture: Of the model.
        max_context: Tokens that the graph serves.
        half: Whether it computes in float16.
    """
    numbers = (
        architecture.head_dim * any(layer.uses_rope for layer in architecture.layers),
        any(layer.temperature_tuning for layer in architecture.layers),
    )
    return max_context * sum(numbers) * (_GPU_GRAPH_BYTES if half else _GRAPH_BYTES)


def running_needs(graph_bytes: int) -> Needs:
    """What it takes to run a graph over texts, beside its weights the copy that ONNX Runtime packs, and to write it."""
    return Needs(_PROCESS_BYTES + 2 * graph_bytes, graph_bytes)


def judging_needs(graph_bytes: int, architecture: Architecture) -> Needs:
    """What it takes to judge a graph on texts beside PyTorch's model in float32."""
    return Needs(_PROCESS_BYTES + graph_bytes + architecture.parameters() * _GRAPH_BYTES, 0)


def whole_validation_bytes(architecture: Architecture) -> int:
    """Memory to hold PyTorch's model and ONNX Runtime's side by side, in float32."""
    return _PROCESS_BYTES + 2 * architecture.parameters() * _GRAPH_BYTES


def _memory(demand: Demand, stage: str) -> float:
    parameters = demand.architecture.parameters()
    if stage == "checkpoint" and demand.source == "trained":
        return _PROCESS_BYTES + parameters * _TRAINING_BYTES
    if demand.run:
        return whole_validation_bytes(demand.architecture)
    if stage in _MEASURED:
        return _PROCESS_BYTES + _measuring(demand, stage, "cpu")
    if stage in _VALIDATED:
        # One layer at least: PyTorch's in float32, then ONNX Runtime's with a packed copy.
        layer = _largest_layer(demand.architecture) * _GRAPH_BYTES
        return min(whole_validation_bytes(demand.architecture), _PROCESS_BYTES + 2 * layer)
    if stage in _GRAPH_BITS:
        return _PROCESS_BYTES + 3 * _largest_piece(demand)
    return _PROCESS_BYTES


def _measuring(demand: Demand, stage: str, device: str) -> float:
    """One engine at a time with its cache; the quality of trained weights is judged beside PyTorch in float32.

    An engine whose speed cannot be measured for lack of memory is a row that says so.
    """
    parameters = demand.architecture.parameters()
    cache = demand.architecture.kv_cache_bytes(demand.cached_tokens)
    reference = parameters * _GRAPH_BYTES if demand.source != "random" else 0
    if stage == "pytorch_baseline":
        dtype = pytorch_dtype(demand.dtype, demand.architecture.has_experts, device)
        return parameters * _DTYPE_BYTES[dtype] + max(cache, reference if dtype != "float32" else 0)
    graph = _disk(demand, "int4_graph")
    float_graph = parameters * (_GPU_GRAPH_BYTES if device == "cuda" else _GRAPH_BYTES)
    return max(graph + cache, reference + float_graph if reference else 0)


def _disk(demand: Demand, stage: str) -> float:
    parameters = demand.architecture.parameters()
    if stage == "checkpoint" and demand.source in ("trained", "hub"):
        return parameters * _DTYPE_BYTES[demand.dtype]
    return _graph_bytes(demand.architecture, *_GRAPH_BITS.get(stage, (0, 0, 0)))


def _graph_bytes(architecture: Architecture, expert_bits: float, table_bits: float, bits: float) -> float:
    experts = sum(map(math.prod, _expert_stacks(architecture)))
    table = architecture.vocab_size * architecture.hidden_size
    others = architecture.parameters() - experts - table
    return (experts * expert_bits + table * table_bits + others * bits) / 8


def _layer_by_layer(architecture: Architecture) -> int:
    """A layer or a table in ONNX Runtime with a packed copy, moments of its inputs, and what flows between layers."""
    segment = max(_largest_layer(architecture), architecture.vocab_size * architecture.hidden_size)
    moments = _MOMENTS * _widest(architecture) ** 2 * _GRAPH_BYTES
    states = _STATES * STATISTICS_TOKENS * architecture.hidden_size * _GRAPH_BYTES
    return 2 * segment * _GRAPH_BYTES + moments + states


def _sensitivity(architecture: Architecture) -> int:
    """Beside the graph: a table or the experts of a layer, rounded, and predictions of two models."""
    largest = max(map(math.prod, architecture.checkpoint_tensors().values()))
    return (3 * largest + 3 * SENSITIVITY_TOKENS * architecture.vocab_size) * _GRAPH_BYTES


def _widest(architecture: Architecture) -> int:
    """Inputs of the widest matrix of a layer."""
    return max(
        shape[-1] if len(shape) == 2 else shape[1]
        for name, shape in architecture.checkpoint_tensors().items()
        if name.startswith(_LAYERS) and len(shape) > 1
    )


def _expert_stacks(architecture: Architecture) -> list[tuple[int, ...]]:
    return [shape for shape in architecture.checkpoint_tensors().values() if len(shape) == 3]


def _largest_layer(architecture: Architecture) -> int:
    """Weights of the largest layer."""
    weights: dict[str, int] = {}
    for name, shape in architecture.checkpoint_tensors().items():
        if name.startswith(_LAYERS):
            layer = name.split(".")[2]
            weights[layer] = weights.get(layer, 0) + math.prod(shape)
    return max(weights.values())


def _largest_piece(demand: Demand) -> int:
    """Bytes of the largest piece that a stream holds: one expert of a stack as stored, or a run of rows."""
    width = _DTYPE_BYTES[demand.dtype]
    experts = [math.prod(shape[1:]) * width for shape in _expert_stacks(demand.architecture)]
    return max(experts, default=0) + _ROWS_BYTES
