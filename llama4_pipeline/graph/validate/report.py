"""What a validation found: figures per layer, failures, greedy continuations, as rows, JSON and Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llama4_pipeline.graph.validate.compare import ExpertChanges, Tolerance
from llama4_pipeline.graph.validate.localise import Place
from llama4_pipeline.graph.validate.probes import FINAL_NORM, LOGITS
from llama4_pipeline.graph.validate.uses import Case, Step

_POSITION_BINS = 64
_SHADES = ".:-=+*#%@"
_FIRST_DECADE = -7


@dataclass(frozen=True)
class Spot:
    """One token of one case: `position` is its column, counted over all steps."""

    use: str
    length: int
    batch: int
    padding: str
    positions: str
    row: int
    position: int

    @classmethod
    def of(cls, case: Case, step: Step, row: int, column: int) -> "Spot":
        """The token at a row and column of a step."""
        return cls(case.use, case.length, case.batch, case.padding, case.positions, row, step.past + column)

    def __str__(self) -> str:
        return (
            f"length {self.length}, batch {self.batch}, row {self.row}, position {self.position} "
            f"({self.use}, {self.padding} padding, {self.positions} positions)"
        )


@dataclass(frozen=True)
class Failure:
    """A figure past its bound: where, which, and at which token.

    `layer` is -1 outside the layers; `expert` and `cause` are None where there is nothing to name.
    """

    layer: int
    block: str
    figure: str
    value: float
    bound: float
    spot: Spot
    expert: int | None = None
    cause: str | None = None

    @classmethod
    def at(cls, place: Place, spot: Spot) -> "Failure":
        """The failure of a located block."""
        return cls(
            place.layer, place.block, place.figure, place.value, place.bound, spot, place.expert, place.cause
        )

    def __str__(self) -> str:
        where = f"layer {self.layer} {self.block}" if self.layer >= 0 else self.block
        if self.expert is not None:
            where += f" (expert {self.expert})"
        text = f"{where}: {self.figure} {self.value:.6g}, bound {self.bound:g}, at {self.spot}"
        return f"{text}: {self.cause}" if self.cause else text


@dataclass(frozen=True)
class ProbeRow:
    """One block over all cases.

    Attributes:
        cosine: Of the values at all real tokens of all cases, as one vector.
        token_cosine: Of the worst token.
        error: Of the worst token.
        worst: That token.
        kl_divergence: Mean KL divergence in nats of what a layer's output would predict; None where not
            measured.
    """

    layer: int
    block: str
    cosine: float
    token_cosine: float
    error: float
    worst: Spot
    kl_divergence: float | None = None


@dataclass(frozen=True)
class GreedyRow:
    """One greedy continuation against PyTorch's.

    Attributes:
        identical: Tokens of each row before the first that differs, the least over the rows.
        logits_error: Largest error of a logit relative to the reference's deviation, over the identical part.
        tie: Whether the first different token was a tie in the reference, which rounding alone may turn.
    """

    prompt_length: int
    batch: int
    tokens: int
    identical: int
    logits_error: float
    tie: bool


@dataclass(frozen=True)
class ValidationReport:
    """The result of `validate_graph`."""

    graph: str
    form: str
    precision: str
    opset: int
    tolerance: Tolerance
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    cases: int
    compared_tokens: int
    rows: tuple[ProbeRow, ...]
    routers: tuple[ExpertChanges, ...]
    greedy: tuple[GreedyRow, ...]
    failures: tuple[Failure, ...]
    seconds: float
    # float32 [rows of `layers`, longest length], NaN where nothing was compared
    error_by_position: np.ndarray

    @property
    def passed(self) -> bool:
        """Whether every figure is within its bound."""
        return not self.failures

    @property
    def layers(self) -> tuple[ProbeRow, ...]:
        """One row per layer (its output), then the final norm and the logits."""
        return tuple(row for row in self.rows if row.block == "output" or row.block in (FINAL_NORM, LOGITS))

    @property
    def expert_change_share(self) -> float | None:
        """Share of routed tokens whose set of experts changed, over all layers; None for a dense model."""
        tokens = sum(row.tokens for row in self.routers)
        return sum(row.changed for row in self.routers) / tokens if tokens else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, all of them, infinities too; the picture's data are binned by position."""
        plain = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("error_by_position", "failures")
        }
        edges, binned = position_bins(self.error_by_position)
        return plain | {
            "passed": self.passed,
            "failures": [{**asdict(failure), "message": str(failure)} for failure in self.failures],
            "expert_change_share": self.expert_change_share,
            "error_by_position": {
                "layers": [row_label(row) for row in self.layers],
                "position_from": edges.tolist(),
                "error": binned.tolist(),
            },
        }

    def to_markdown(self) -> str:
        """A verdict, a table with a row per layer, the error by layer and position, greedy rows, failures."""
        verdict = "passed" if self.passed else f"FAILED ({len(self.failures)})"
        lines = [
            f"Validation of the {self.form} graph (opset {self.opset}, {self.precision}) "
            f"against PyTorch: {verdict}. {self.cases} cases, {self.compared_tokens:,} tokens, "
            f"lengths {min(self.lengths)} to {max(self.lengths)}, "
            f"batches {', '.join(map(str, self.batches))}, {self.seconds:.0f} s.",
            f"Bounds: {self.tolerance}.",
            "",
            *self._table(),
            "",
            *self._map(),
            "",
        ]
        for row in self.greedy:
            tie = " (a tie in the reference follows)" if row.tie else ""
            lines.append(
                f"Greedy from {row.prompt_length} tokens, batch {row.batch}: "
                f"{row.identical} of {row.tokens} tokens identical{tie}, logits error {row.logits_error:.1e}."
            )
        lines += [f"- {failure}" for failure in self.failures]
        return "\n".join(lines)

    def _map(self) -> list[str]:
        """The error by layer and position in characters, a decade each."""
        _, binned = position_bins(self.error_by_position)
        labels = [row_label(row) for row in self.layers]
        width = max(map(len, labels))
        lines = [
            f"{label:>{width}} |{''.join(map(_shade, row))}|"
            for label, row in zip(labels, binned.tolist(), strict=True)
        ]
        last = self.error_by_position.shape[1] - 1
        legend = (
            f"Error by layer and position (0 to {last}); '{_SHADES[0]}' is below 1e-07, then a decade each: "
        )
        return [legend + f"'{_SHADES[1:]}'.", "", "```", *lines, "```"]

    def _table(self) -> list[str]:
        routers = {row.layer: row for row in self.routers}
        blocks = {(row.layer, row.block): row for row in self.rows}
        columns = ["attention", "router_logits", "experts", "feed_forward"]
        header = [
            "layer",
            "cosine",
            "least token cosine",
            "error",
            *columns,
            "expert changes",
            "KL",
            "worst token",
        ]
        lines = [_line(header), _line(["---"] * len(header))]
        for row in self.layers:
            inner = [blocks.get((row.layer, block)) if row.layer >= 0 else None for block in columns]
            router = routers.get(row.layer)
            cells = [row_label(row), f"{row.cosine:.8f}", f"{row.token_cosine:.8f}", f"{row.error:.1e}"]
            cells += [f"{found.error:.1e}" if found else "" for found in inner]
            cells.append(f"{router.changed} of {router.tokens}" if router else "")
            cells.append("" if row.kl_divergence is None else f"{row.kl_divergence:.2e}")
            cells.append(f"length {row.worst.length}, row {row.worst.row}, position {row.worst.position}")
            lines.append(_line(cells))
        return lines


def row_label(row: ProbeRow) -> str:
    """What a row of the table and of the picture is called."""
    return str(row.layer) if row.layer >= 0 else row.block.replace("_", " ")


def position_bins(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest error in stretches of positions.

    Args:
        errors: float [rows, positions].

    Returns:
        First position of each stretch, int64 [bins], and float [rows, bins]; NaN where nothing was compared.
    """
    edges = np.unique(np.linspace(0, errors.shape[1], _POSITION_BINS, endpoint=False, dtype=np.int64))
    filled = np.where(np.isnan(errors), -1.0, errors)
    binned = np.maximum.reduceat(filled, edges, axis=1)
    return edges, np.where(binned < 0, np.nan, binned)


def _shade(error: float) -> str:
    """One character for an error; blank where nothing was compared."""
    if np.isnan(error):
        return " "
    decade = np.log10(min(max(error, 1e-30), 1e30)) - _FIRST_DECADE
    return _SHADES[int(np.clip(np.floor(decade) + 1, 0, len(_SHADES) - 1))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
