"""Validation of a model larger than memory: PyTorch and the graph, each cut into layers, run one layer at a time.

The reference runs as models of transformers with one layer each, made from the checkpoint's weights for that layer; the
graph is cut at the same places, so that ONNX Runtime maps the weights of one layer. Hidden states flow from layer to
layer on either side as they would in the whole. What is compared, and how, is the same as in `validate_graph`, but for
the divergence of a graph that is not float32: it is that of the logits, not of every layer.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from transformers import DynamicCache

from llama4_pipeline.graph.convert import is_float16
from llama4_pipeline.graph.external_data import load_graph, require_valid
from llama4_pipeline.graph.session import cut_out, open_session
from llama4_pipeline.graph.validate.compare import TOLERANCES, StepComparison, Tolerance, divergence_of_last
from llama4_pipeline.graph.validate.localise import locate
from llama4_pipeline.graph.validate.oracle import Hooks
from llama4_pipeline.graph.validate.probes import (
    EMBEDDING,
    FINAL_NORM,
    LOGITS,
    Cache,
    Probe,
    StepValues,
    empty_cache,
    graph_facts,
    present,
    probes_of,
    read_graph,
    run_step,
)
from llama4_pipeline.graph.validate.report import Failure, Spot, ValidationReport
from llama4_pipeline.graph.validate.sweep import require_batches, sweep_lengths
from llama4_pipeline.graph.validate.tally import Tally
from llama4_pipeline.graph.validate.uses import Case, Part, Step, UseName, make_case
from llama4_pipeline.llama4.architecture import EMBEDDING as EMBEDDING_WEIGHT
from llama4_pipeline.llama4.architecture import LM_HEAD, Architecture
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.llama4.weights import WeightSource, iterate_rows
from llama4_pipeline.progress import Progress

_USES: tuple[UseName, ...] = ("prefill", "decode")
_RANDOM_TOKENS = 65536
_LENGTH = 33

Values = list[list[dict[str, np.ndarray]]]
"""Probe name to float32 [batch, sequence, width], for each step of each case."""


def validate_in_layers(
    checkpoint: Checkpoint,
    graph: Path,
    *,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 2),
    tolerance: Tolerance | None = None,
) -> ValidationReport:
    """Compares an ONNX directory with transformers' model in float32, holding one layer of each at a time.

    Every length is run as a prefill and as prefill and decode, unpadded, at every batch. The inner values of all
    layers are kept: about nine rows of the hidden size for each token and layer.

    Args:
        checkpoint: what the graph was made from.
        graph: directory with model.onnx, of any form and precision.
        lengths: tokens of a row; None takes 1 and 33, or what the graph holds where that is less.
        batches: numbers of rows.
        tolerance: bounds; None takes those of the graph's precision.

    Returns:
        The report; without greedy continuations.

    Raises:
        InputError: a length or batch is not positive, a length is more than the graph holds, or `graph` holds no ONNX
            model that `onnx.checker` accepts.
    """
    start = time.monotonic()
    require_batches(batches)
    require_valid(graph, load_graph(graph))
    facts = graph_facts(read_graph(graph))
    architecture = checkpoint.architecture
    bounds = tolerance or TOLERANCES[facts.precision]
    limit = facts.max_context or architecture.max_position_embeddings
    resolved = sweep_lengths(
        architecture, sorted({1, min(_LENGTH, limit)}) if lengths is None else lengths, limit
    )
    tokens = np.random.default_rng(0).integers(0, architecture.vocab_size, size=_RANDOM_TOKENS).tolist()
    cases = [
        make_case(use, length, batch, tokens=tokens, max_context=limit)
        for use in _USES
        for length in resolved
        for batch in batches
    ]
    expected = _LayeredModel(checkpoint).run(cases)
    got = _LayeredGraph(graph, architecture).run(cases)
    probes = probes_of(architecture)
    exact = facts.precision == "float32"
    logits = next(probe.name for probe in probes if probe.block == LOGITS)
    tally, failures = Tally(probes), []
    for case, reference, values in zip(cases, expected, got, strict=True):
        comparison = StepComparison(probes, architecture.experts_per_token, exact)
        failure = _compare(case, comparison, tally, reference, values, bounds)
        if not exact:
            for step, at_first, at_last in zip(case.steps, reference, values, strict=True):
                tally.add_divergence({logits: divergence_of_last(step, at_first[logits], at_last[logits])})
        failures += [failure] if failure and exact else []
    return ValidationReport(
        graph=str(graph),
        form=facts.form,
        precision=facts.precision,
        opset=facts.opset,
        tolerance=bounds,
        lengths=tuple(resolved),
        batches=tuple(batches),
        cases=len(cases),
        compared_tokens=tally.compared_tokens,
        rows=tally.rows(),
        routers=tally.routers(),
        greedy=(),
        failures=tuple(failures if exact else tally.first_beyond(bounds)),
        seconds=time.monotonic() - start,
        error_by_position=tally.error_by_position(),
    )


def _compare(
    case: Case,
    comparison: StepComparison,
    tally: Tally,
    reference: list[dict[str, np.ndarray]],
    values: list[dict[str, np.ndarray]],
    tolerance: Tolerance,
) -> Failure | None:
    """Adds the figures of a case; the first block of the first step that is past a bound."""
    first = None
    for step, expected, got in zip(case.steps, reference, values, strict=True):
        figures, changes = comparison.compare(step, StepValues(expected), StepValues(got))
        tally.add(case, step, figures, changes)
        place = locate(figures, StepValues(expected), tolerance)
        if place and first is None:
            first = Failure.at(place, Spot.of(case, step, place.row, place.column))
    return first


class _LayeredModel:
    """transformers' Llama 4, one layer at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def run(self, cases: Sequence[Case]) -> Values:
        """The values of every probe."""
        source, layers = self._checkpoint.weights, self._checkpoint.architecture.layers
        values: Values = [[{EMBEDDING: _embedded(source, step)} for step in case.steps] for case in cases]
        entering = EMBEDDING
        with Progress("PyTorch by layer", len(layers), "layers") as progress:
            for layer in layers:
                self._run_layer(layer.index, cases, values, entering)
                entering = f"layers.{layer.index}.output"
                progress.advance()
        head = EMBEDDING_WEIGHT if self._checkpoint.architecture.tie_word_embeddings else LM_HEAD
        for steps in values:
            for found in steps:
                found[LOGITS] = _logits(source, head, found[FINAL_NORM])
        return values

    @torch.no_grad()
    def _run_layer(self, index: int, cases: Sequence[Case], values: Values, entering: str) -> None:
        model = _one_layer(self._checkpoint, index).load_model("float32")
        for case, steps in zip(cases, values, strict=True):
            cache = DynamicCache()
            for step, found in zip(case.steps, steps, strict=True):
                with Hooks(model) as hooks:
                    model.model(
                        inputs_embeds=torch.from_numpy(found[entering]),
                        attention_mask=torch.from_numpy(step.attention_mask),
                        position_ids=torch.from_numpy(step.position_ids),
                        past_key_values=cache,
                        use_cache=True,
                    )
                for name, value in hooks.values.items():
                    where = name.replace("layers.0.", f"layers.{index}.")
                    found[where] = value.reshape(step.batch, step.sequence, -1).float().numpy()


def _one_layer(checkpoint: Checkpoint, index: int) -> Checkpoint:
    """A checkpoint of one layer, behind which the final norm stands; its vocabulary is a single token."""
    layer = checkpoint.architecture.layers[index]
    config = dict(checkpoint.text_config) | {
        "vocab_size": 1,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_hidden_layers": 1,
        "no_rope_layers": [int(layer.uses_rope)],
        "moe_layers": [0] if layer.is_moe else [],
        "layer_types": ["chunked_attention" if layer.chunk_size else "full_attention"],
    }
    architecture = Architecture.from_config(config)
    weights = _LayerSource(checkpoint.weights, architecture, index)
    return Checkpoint(checkpoint.directory, config, architecture, weights)


@dataclass(frozen=True)
class _LayerSource:
    """The weights of one layer under the names of a first layer; the table of tokens is ones."""

    whole: WeightSource
    architecture: Architecture
    index: int

    def names(self) -> tuple[str, ...]:
        return tuple(self.architecture.checkpoint_tensors())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.architecture.checkpoint_tensors()[name]

    def dtype(self, name: str) -> np.dtype:
        return self.whole.dtype(self._named(name))

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        if name in (EMBEDDING_WEIGHT, LM_HEAD):
            return np.ones(self.shape(name), self.dtype(name))
        return self.whole.read(self._named(name), rows)

    def _named(self, name: str) -> str:
        return name.replace("model.layers.0.", f"model.layers.{self.index}.")


def _embedded(source: WeightSource, step: Step) -> np.ndarray:
    """Rows of the embedding, float32 [B, S, H]."""
    ids, where = np.unique(step.input_ids, return_inverse=True)
    rows = [source.read(EMBEDDING_WEIGHT, slice(token, token + 1)) for token in ids.tolist()]
    return np.concatenate(rows).astype(np.float32)[where.reshape(step.input_ids.shape)]


def _logits(source: WeightSource, head: str, hidden: np.ndarray) -> np.ndarray:
    """float32 [B, S, V], the head read piece by piece."""
    states = torch.from_numpy(hidden)
    parts = [
        (states @ torch.from_numpy(rows.astype(np.float32)).T).numpy() for rows in iterate_rows(source, head)
    ]
    return np.concatenate(parts, axis=-1)


class _LayeredGraph:
    """A graph directory in ONNX Runtime, one layer at a time."""

    def __init__(self, graph: Path, architecture: Architecture) -> None:
        self._graph, self._architecture = graph, architecture
        self._facts = graph_facts(read_graph(graph))
        self._model = load_graph(graph)
        self._dtype = np.dtype(np.float16 if is_float16(self._model) else np.float32)

    def run(self, cases: Sequence[Case]) -> Values:
        """The values of every probe."""
        values: Values = [[{} for _ in case.steps] for case in cases]
        segments = list(_segments(probes_of(self._architecture)))
        with Progress("ONNX Runtime by layer", len(segments), "stretches") as progress:
            for layer, entering, probes in segments:
                self._run_segment(layer, entering, probes, cases, values)
                progress.advance()
        return values

    def _run_segment(
        self,
        layer: int,
        entering: tuple[str, ...],
        probes: tuple[str, ...],
        cases: Sequence[Case],
        values: Values,
    ) -> None:
        caches = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")] if layer >= 0 else []
        outputs = [*probes, *map(present, caches)]
        session = self._open(entering, outputs)
        asked = {value.name: value for value in session.get_inputs()}

        def run(found: dict[str, np.ndarray], part: Part, cache: Cache) -> tuple[dict[str, np.ndarray], list]:
            given = {
                "input_ids": part.step.input_ids,
                "attention_mask": part.step.attention_mask,
                "position_ids": part.step.position_ids,
                "logits_to_keep": np.array(0, np.int64),
                **{name: found[name][part.rows, part.columns].astype(self._dtype) for name in entering},
                **cache,
            }
            results = session.run(outputs, {name: given[name] for name in asked})
            size = (part.step.batch, part.step.sequence, -1)
            values = zip(probes, results, strict=False)
            return {name: value.reshape(size) for name, value in values}, results[len(probes) :]

        for case, steps in zip(cases, values, strict=True):
            cache = empty_cache([asked[name] for name in caches], case, self._facts)
            for step, found in zip(case.steps, steps, strict=True):
                new, cache = run_step(step, cache, self._facts, partial(run, found))
                found.update(new)

    def _open(self, entering: tuple[str, ...], outputs: list[str]) -> onnxruntime.InferenceSession:
        part = cut_out(self._model.graph, dict.fromkeys(entering, self._dtype), outputs)
        functions = list(self._model.functions.values())
        model = ir.Model(part, ir_version=self._model.ir_version, functions=functions)
        return open_session(model, self._graph)


def _segments(probes: tuple[Probe, ...]) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """Layer (-1 outside), values that enter, and probes of each stretch of the graph."""
    by_layer: dict[int, list[str]] = {}
    for probe in probes:
        by_layer.setdefault(probe.layer, []).append(probe.name)
    outside = by_layer.pop(-1)
    yield -1, (), (outside[0],)
    entering: tuple[str, ...] = (outside[0],)
    for layer, names in by_layer.items():
        yield layer, entering, tuple(names)
        entering = (f"layers.{layer}.feed_forward", f"layers.{layer}.attention_residual")
    yield -1, entering, tuple(outside[1:])
