"""One trial: a drawn configuration, exported at an opset, fused, and put to drawn uses beside transformers."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.simplify import simplify_graph
from llama4_pipeline.graph.validate.compare import StepComparison, Tolerance
from llama4_pipeline.graph.validate.greedy import compare_greedy
from llama4_pipeline.graph.validate.localise import locate
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.probes import LOGITS, Probe, ProbedGraph, StepValues, probes_of
from llama4_pipeline.graph.validate.report import Failure, Spot
from llama4_pipeline.graph.validate.uses import PADDINGS, POSITIONS, USES, Case, make_case
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.conformance.axes import MAX_CONTEXT, Point, configuration, points

OPSETS = (20, 18, 21, 23, 25)  # 25 is the newest that torch's exporter writes and ONNX Runtime runs
TOLERANCE = Tolerance()
_GREEDY_TOKENS = 12
_WEIGHT_SEED = 3


@dataclass(frozen=True)
class Use:
    """What `make_case` is asked for."""

    use: str
    length: int
    batch: int
    padding: str
    positions: str
    seed: int


@dataclass(frozen=True)
class Trial:
    """A point of the axes, an opset and some uses; plain values, so that a failing one can be kept as a file."""

    point: Point
    opset: int
    uses: tuple[Use, ...]

    def to_json(self) -> str:
        """The content of a regression file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Trial":
        """Reads a regression file."""
        plain = json.loads(text)
        point = tuple((axis, value) for axis, value in plain["point"])
        return cls(point, plain["opset"], tuple(Use(**use) for use in plain["uses"]))


@dataclass(frozen=True)
class Outcome:
    """One use of one form: the largest error of a logit and the least cosine of a layer, or what went wrong."""

    form: str
    use: Use | None  # None is the greedy continuation
    logits_error: float
    cosine: float
    failure: Failure | None


def uses() -> st.SearchStrategy[Use]:
    """Draws a use of at most MAX_CONTEXT tokens."""
    return st.builds(
        Use,
        use=st.sampled_from(USES),
        length=st.one_of(st.sampled_from((8, 33, MAX_CONTEXT)), st.integers(1, MAX_CONTEXT)),
        batch=st.integers(1, 8),
        padding=st.sampled_from(PADDINGS),
        positions=st.sampled_from(POSITIONS),
        seed=st.integers(0, 3),
    )


def trials(uses_each: int) -> st.SearchStrategy[Trial]:
    """Draws a point, an opset and `uses_each` uses."""
    drawn = st.lists(uses(), min_size=uses_each, max_size=uses_each).map(tuple)
    return st.builds(Trial, point=points(), opset=st.sampled_from(OPSETS), uses=drawn)


def run_trial(trial: Trial, directory: Path) -> Iterator[Outcome]:
    """Makes the checkpoint and its graphs in `directory` and yields the outcome of every use of every form."""
    keys: dict[str, Any] = configuration(trial.point)
    checkpoint = Checkpoint.open(
        write_random_checkpoint(directory / "checkpoint", seed=_WEIGHT_SEED, **_all(keys))
    )
    graphs = {form: directory / form for form in ("portable", "fused")}
    export_graph(checkpoint, graphs["portable"], opset=trial.opset, max_context=MAX_CONTEXT)
    simplify_graph(graphs["portable"], directory / "simplified")
    fuse_graph(directory / "simplified", graphs["fused"])
    tokens = list(range(checkpoint.architecture.vocab_size))
    tokens = tokens[1::2] + tokens[::-3]
    oracle = Oracle(checkpoint.load_model())
    cases = [(use, make_case(**asdict(use), tokens=tokens, max_context=MAX_CONTEXT)) for use in trial.uses]
    expected = [list(oracle.run(case)) for _, case in cases]
    probes = probes_of(checkpoint.architecture)
    for form, graph in graphs.items():
        probed = ProbedGraph(graph, probes, threads=1)
        for (use, case), reference in zip(cases, expected, strict=True):
            yield _compare(
                form, use, case, reference, probed, probes, checkpoint.architecture.experts_per_token
            )
        rows, failures = compare_greedy(
            oracle,
            graph,
            prompt_lengths=[5, 30],
            batches=[1, 3],
            new_tokens=_GREEDY_TOKENS,
            tokens=tokens,
            tolerance=TOLERANCE,
            max_context=MAX_CONTEXT,
            threads=1,
        )
        worst = max(row.logits_error for row in rows)
        yield Outcome(form, None, worst, 1.0, failures[0] if failures else None)


def _all(keys: dict[str, Any]) -> dict[str, Any]:
    """The drawn keys over those of the test checkpoint, whose lists of layers do not fit other depths."""
    return {"moe_layers": None, **keys}


def _compare(
    form: str,
    use: Use,
    case: Case,
    expected: list[StepValues],
    graph: ProbedGraph,
    probes: tuple[Probe, ...],
    experts_per_token: int,
) -> Outcome:
    comparison = StepComparison(probes, experts_per_token, exact=True)
    error, cosine = 0.0, 1.0
    for step, reference, got in zip(case.steps, expected, graph.run(case), strict=True):
        figures, _ = comparison.compare(step, reference, got)
        for found in figures:
            if found.probe.block == LOGITS:
                error = max(error, found.error)
            if found.probe.block == "output":
                cosine = min(cosine, found.cosine)
        place = locate(figures, reference, TOLERANCE)
        if place is not None:
            failure = Failure.at(place, Spot.of(case, step, place.row, place.column))
            return Outcome(form, use, error, cosine, failure)
    return Outcome(form, use, error, cosine, None)
