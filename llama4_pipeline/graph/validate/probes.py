"""The inner values that are compared, by name, and where each is found in the model and in the graph."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import QUANTIZED_OPERATORS
from llama4_pipeline.graph.session import open_session
from llama4_pipeline.graph.validate.uses import Case, Part, Step, runs_of, whole
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.metadata import CHUNK_SIZE_KEY, FORM_KEY, MAX_CONTEXT_KEY, tokens_in
from llama4_pipeline.runtime.decoder import UNLIMITED

Cache = dict[str, np.ndarray]  # by the name of the graph's input, [batch, kv_heads, tokens, head_dim]
EMBEDDING = "embedding"
FINAL_NORM = "final_norm"
LOGITS = "logits"
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


@dataclass(frozen=True)
class Probe:
    """One compared value: a block of a layer, or what lies outside the layers (layer -1)."""

    name: str
    layer: int
    block: str

    def __str__(self) -> str:
        return f"layer {self.layer} {self.block}" if self.layer >= 0 else self.block


def probes_of(architecture: Architecture) -> tuple[Probe, ...]:
    """All probes of a model in the order in which they are computed; the logits come last."""
    found = [Probe(EMBEDDING, -1, EMBEDDING)]
    for layer in architecture.layers:
        blocks = ["attention_norm", "attention", "attention_residual", "feed_forward_norm"]
        if layer.is_moe:
            blocks += ["router_logits", "experts", "shared_expert"]
        blocks += ["feed_forward", "output"]
        found += [Probe(f"layers.{layer.index}.{block}", layer.index, block) for block in blocks]
    return (*found, Probe(FINAL_NORM, -1, FINAL_NORM), Probe(LOGITS, -1, LOGITS))


@dataclass(frozen=True)
class StepValues:
    """What one step computed: probe name to float [batch, sequence, width], in the caller's order."""

    values: dict[str, np.ndarray]


class ProbedGraph:
    """A graph directory in ONNX Runtime with its inner values as extra outputs.

    The model file is read without its weights, given the outputs, and handed over in memory; ONNX Runtime
    finds the weights in the directory. Nothing is written.
    """

    def __init__(self, graph: Path, probes: tuple[Probe, ...], threads: int = 0) -> None:
        model = read_graph(graph)
        self.facts = graph_facts(model)
        self._probes = probes
        present = {output.name for output in model.graph.output}
        missing = _missing_values(model, [probe.name for probe in probes])
        if missing:
            raise InputError(
                f"{graph / 'model.onnx'} has no value named {missing[0]} ({len(missing)} are missing): "
                "export the checkpoint anew"
            )
        extra = [probe.name for probe in probes if probe.name not in present]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        self._session = open_session(model, graph, threads)
        self._caches = [
            value for value in self._session.get_inputs() if value.name.startswith("past_key_values.")
        ]

    def run(self, case: Case) -> Iterator[StepValues]:
        """Feeds the steps of a case, fresh cache first, and yields the values of each."""
        cache = empty_cache(self._caches, case, self.facts)
        for step in case.steps:
            values, cache = run_step(step, cache, self.facts, self._run)
            yield StepValues(values)

    def _run(self, part: Part, cache: Cache) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        step = part.step
        feeds = {
            "input_ids": step.input_ids,
            "attention_mask": step.attention_mask,
            "position_ids": step.position_ids,
            **cache,
        }
        names = [probe.name for probe in self._probes]
        outputs = self._session.run([*names, *map(present, cache)], feeds)
        order = _in_graph_order(step) if self.facts.fused else None
        values = {}
        for probe, value in zip(self._probes, outputs[: len(names)], strict=True):
            value = value.reshape(step.batch, step.sequence, -1)
            if order is not None and probe.block != LOGITS:
                value = np.take_along_axis(value, order[:, :, None], axis=1)
            values[probe.name] = value
        return values, outputs[len(names) :]


@dataclass(frozen=True)
class GraphFacts:
    """What kind of graph it is.

    Attributes:
        form: `fused` has operators of com.microsoft, `portable` has none.
        precision: `float32`, `float16`, `int8` (any weight, or the cache, in 8 bits), or `int4` (any weight in 4).
        opset: Version of the standard operators.
        max_context: Tokens that it can hold, from its metadata; None when it does not say.
        chunk_size: Tokens that the cache of a chunked layer can hold; `UNLIMITED` where they hold the whole context.
    """

    form: str
    precision: str
    opset: int
    max_context: int | None
    chunk_size: int

    @property
    def fused(self) -> bool:
        """Whether rows are kept compact in the cache and inner values of padded rows are rotated."""
        return self.form == "fused"


def read_graph(graph: Path) -> onnx.ModelProto:
    """Reads the model of a graph directory without its weights.

    Raises:
        InputError: There is no model.onnx.
    """
    path = graph / "model.onnx"
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a directory that export wrote")
    return onnx.load(path, load_external_data=False)


def graph_facts(model: onnx.ModelProto) -> GraphFacts:
    """Reads form, precision, opset and context from a model without weights."""
    operators = {node.op_type for node in model.graph.node}
    bits = {
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name in ("bits", "expert_weight_bits")
    }
    types = {weight.data_type for weight in model.graph.initializer}
    precision = "float32"
    inputs = {value.type.tensor_type.elem_type for value in model.graph.input}
    if operators & QUANTIZED_OPERATORS or onnx.TensorProto.INT8 in inputs:
        precision = "int4" if 4 in bits else "int8"
    elif onnx.TensorProto.FLOAT16 in types:
        precision = "float16"
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    form = metadata.get(FORM_KEY) or ("fused" if "GroupQueryAttention" in operators else "portable")
    chunk_size = tokens_in(metadata, CHUNK_SIZE_KEY) or UNLIMITED
    return GraphFacts(form, precision, opset, tokens_in(metadata, MAX_CONTEXT_KEY), chunk_size)


def empty_cache(inputs: list[onnxruntime.NodeArg], case: Case, facts: GraphFacts) -> Cache:
    """Room for the whole case, or for a chunk of it, where the cache is written in place; none where it grows."""
    cache = {}
    for value in inputs:
        _, heads, room, head_dim = value.shape
        tokens = min(case.length, facts.chunk_size) if room == "chunk" else case.length
        shape = (case.batch, heads, tokens if facts.fused else 0, head_dim)
        cache[value.name] = np.zeros(shape, dtype=_NUMPY_TYPES[value.type])
    return cache


def present(past: str) -> str:
    """Name of the output that holds a cache behind the call."""
    return past.replace("past_key_values.", "present.")


def run_step(
    step: Step,
    cache: Cache,
    facts: GraphFacts,
    run: Callable[[Part, Cache], tuple[dict[str, np.ndarray], list[np.ndarray]]],
) -> tuple[dict[str, np.ndarray], Cache]:
    """Feeds a step in the parts that the graph takes.

    Args:
        step: What is fed.
        cache: Before the step, by the names of the inputs.
        facts: Of the graph.
        run: Feeds one part, with the cache of its rows; returns values [rows, columns, width] and the new cache.

    Returns:
        Values float32 [batch, sequence, width], 0 where no part is, and the cache behind the step.
    """
    values: dict[str, np.ndarray] = {}
    for part in runs_of(step, facts.chunk_size) if facts.fused else whole(step):
        found, after = run(part, {name: past[part.rows] for name, past in cache.items()})
        if all(len(new) == step.batch for new in after):
            cache = dict(zip(cache, after, strict=True))
        else:
            for past, new in zip(cache.values(), after, strict=True):
                past[part.rows] = new
        for name, value in found.items():
            shape = (step.batch, step.sequence, value.shape[-1])
            values.setdefault(name, np.zeros(shape, np.float32))[part.rows, part.columns] = value
    return values, cache


def _missing_values(model: onnx.ModelProto, names: list[str]) -> list[str]:
    known = {output for node in model.graph.node for output in node.output}
    return [name for name in names if name not in known]


def _in_graph_order(step: Step) -> np.ndarray:
    """int64 [batch, sequence]: where the fused graph keeps each of the caller's tokens.

    It turns every row to the left by the padding before its first real token, so that real tokens come first.
    """
    pads = np.argmax(step.real, axis=1)
    return (np.arange(step.sequence)[None, :] - pads[:, None]) % step.sequence
