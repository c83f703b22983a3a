"""The gate: ONNX Runtime against PyTorch, layer by layer, over lengths, batches and uses."""

import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from llama4_pipeline.graph.external_data import load_graph, require_valid
from llama4_pipeline.graph.validate.causes import explain
from llama4_pipeline.graph.validate.compare import (
    TOLERANCES,
    StepComparison,
    Tolerance,
    divergence_of_last,
    last_tokens,
)
from llama4_pipeline.graph.validate.greedy import compare_greedy
from llama4_pipeline.graph.validate.localise import locate
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.probes import (
    LOGITS,
    ProbedGraph,
    StepValues,
    graph_facts,
    probes_of,
    read_graph,
)
from llama4_pipeline.graph.validate.report import Failure, GreedyRow, Spot, ValidationReport
from llama4_pipeline.graph.validate.sweep import (
    LONGEST,
    Lengths,
    require_batches,
    sweep_cases,
    sweep_lengths,
)
from llama4_pipeline.graph.validate.tally import Tally
from llama4_pipeline.graph.validate.uses import Case, Step, text_cases
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.probabilities import kl_divergence
from llama4_pipeline.progress import Progress

_LONGEST_PROMPT = 256
_KEPT_FAILURES = 100
_TOKENS = 32768
_TEXT_WINDOW = 512


def validate_graph(
    checkpoint: Checkpoint,
    graph: Path,
    *,
    lengths: Lengths = "default",
    batches: Sequence[int] = (1, 2, 4, 8),
    greedy_tokens: int = 64,
    text: Sequence[int] = (),
    threads: int = 0,
) -> ValidationReport:
    """Compares an ONNX directory with transformers' model in float32.

    Checked: `onnx.checker`; every layer's output, the blocks inside it and the logits at every real token;
    the expert that each token gets; greedy continuations through `OrtDecoder`. The cases are cut from English text, if
    the checkpoint has a tokenizer, and as many random ids behind it.

    Args:
        checkpoint: What the graph was made from.
        graph: Directory with model.onnx; portable or fused, float32, float16 or quantized.
        lengths: Explicit lengths (each run at every batch), `default` (borders and a seeded sample) or
            `all` (1 to 2048).
        batches: Numbers of rows.
        greedy_tokens: Length of the greedy continuations; 0 leaves them out.
        text: Ids of which every one is compared, in windows of 512, beside the cases: the expert that each token gets.
        threads: Of ONNX Runtime; 0 is one per core.

    Returns:
        The report. A float32 graph fails with the first block and token past a bound of each case; a
        float16 or quantized one with the first layer whose figures over all cases pass a bound.

    Raises:
        InputError: Bad lengths or batches, a graph that `onnx.checker` refuses, or one without the values to compare.
    """
    start = time.monotonic()
    require_batches(batches)
    require_valid(graph, load_graph(graph))
    facts = graph_facts(read_graph(graph))
    architecture = checkpoint.architecture
    bounds = TOLERANCES[facts.precision]
    limit = facts.max_context or max(LONGEST, architecture.max_position_embeddings)
    resolved = sweep_lengths(architecture, lengths, limit)
    ids = _tokens(checkpoint)
    cases = list(sweep_cases(lengths, resolved, batches, tokens=ids, max_context=limit))
    cases += text_cases(text, min(_TEXT_WINDOW, limit))
    oracle = Oracle(checkpoint.load_model("float32"))
    tally, failures = _compare_cases(checkpoint, oracle, graph, cases, bounds, threads)
    greedy: list[GreedyRow] = []
    if greedy_tokens:
        greedy, wrong = compare_greedy(
            oracle,
            graph,
            prompt_lengths=_prompt_lengths(resolved),
            batches=sorted({min(batches), max(batches)}),
            new_tokens=greedy_tokens,
            tokens=ids,
            tolerance=bounds,
            max_context=limit,
            threads=threads,
        )
        failures += wrong
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
        greedy=tuple(greedy),
        failures=tuple(failures),
        seconds=time.monotonic() - start,
        error_by_position=tally.error_by_position(),
    )


def _compare_cases(
    checkpoint: Checkpoint, oracle: Oracle, graph: Path, cases: list[Case], tolerance: Tolerance, threads: int
) -> tuple[Tally, list[Failure]]:
    """Runs all cases; the graph's session, and with it its weights, is gone behind it."""
    validation = _Validation(checkpoint, oracle, graph, tolerance, threads)
    with Progress("validate graph", total=len(cases), unit="cases") as progress:
        for case in cases:
            validation.add(case)
            progress.advance(1, str(case))
    return validation.tally, validation.failures()


class _Validation:
    """Runs cases through model and graph and gathers what they show."""

    def __init__(
        self, checkpoint: Checkpoint, oracle: Oracle, graph: Path, tolerance: Tolerance, threads: int
    ) -> None:
        self._architecture = checkpoint.architecture
        self._oracle = oracle
        self._tolerance = tolerance
        self._probes = probes_of(checkpoint.architecture)
        self._graph = ProbedGraph(graph, self._probes, threads)
        self._exact = self._graph.facts.precision == "float32"
        self._found: list[Failure] = []
        self._explained: set[tuple[int, str]] = set()
        self.tally = Tally(self._probes)

    def add(self, case: Case) -> None:
        """Compares one case. Behind its first failure a case is left, since all that follows is off."""
        comparison = StepComparison(self._probes, self._architecture.experts_per_token, self._exact)
        pairs = zip(case.steps, self._oracle.run(case), self._graph.run(case), strict=True)
        for step, reference, graph in pairs:
            figures, changes = comparison.compare(step, reference, graph)
            self.tally.add(case, step, figures, changes)
            if not self._exact:
                self.tally.add_divergence(self._divergence(step, reference, graph))
                continue
            place = locate(figures, reference, self._tolerance)
            if place is None:
                continue
            if (place.layer, place.block) not in self._explained:
                self._explained.add((place.layer, place.block))
                chunk = self._architecture.layers[place.layer].chunk_size
                place = explain(place, self._oracle.model, chunk, step, reference, graph)
            if len(self._found) < _KEPT_FAILURES:
                self._found.append(Failure.at(place, Spot.of(case, step, place.row, place.column)))
            return

    def failures(self) -> list[Failure]:
        """Of an exact graph those of the cases, of another the first layer past a bound."""
        return self._found if self._exact else self.tally.first_beyond(self._tolerance)

    def _divergence(self, step: Step, reference: StepValues, graph: StepValues) -> dict[str, np.ndarray]:
        """KL divergence of the step's last tokens for every layer's output and for the logits, in nats."""
        picked = last_tokens(step)
        found = {}
        for probe in self._probes:
            expected, got = (values.values[probe.name] for values in (reference, graph))
            if probe.block == LOGITS:
                found[probe.name] = divergence_of_last(step, expected, got)
            elif probe.block == "output":
                predict = self._oracle.next_token_log_probabilities
                found[probe.name] = kl_divergence(predict(expected[picked]), predict(got[picked]))
        return found


def _tokens(checkpoint: Checkpoint) -> list[int]:
    vocabulary = checkpoint.architecture.vocab_size
    text: list[int] = []
    if (checkpoint.directory / "tokenizer.json").is_file():
        english = "\n".join(topics[name] for name in sorted(topics))
        ids = checkpoint.load_tokenizer()(english, add_special_tokens=False, verbose=False)["input_ids"]
        text = [token for token in ids if token < vocabulary][:_TOKENS]
    return text + np.random.default_rng(0).integers(0, vocabulary, size=len(text) or _TOKENS).tolist()


def _prompt_lengths(lengths: Sequence[int]) -> list[int]:
    """The shortest, a middle and the longest of the lengths up to 256."""
    short = sorted(length for length in lengths if length <= _LONGEST_PROMPT) or [min(lengths)]
    return sorted({short[0], short[len(short) // 2], short[-1]})
