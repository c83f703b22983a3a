"""The page that says what was tried: cases and worst error by axis, form and opset."""

from collections import defaultdict
from dataclasses import dataclass, field

from llama4_pipeline_tests.conformance.axes import AXES
from llama4_pipeline_tests.conformance.trial import OPSETS, PADDINGS, TOLERANCE, USES, Outcome, Trial

_USE_AXES = {
    "use": (*USES, "greedy"),
    "padding": PADDINGS,
    "positions": ("raw", "mask", "shifted", "scattered"),
    "batch": tuple(str(batch) for batch in range(1, 9)),
}


@dataclass
class _Cell:
    cases: int = 0
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.cases}, {self.error:.0e}" if self.cases else ""


@dataclass
class Summary:
    """Gathers outcomes."""

    cases: int = 0
    configurations: int = 0
    failures: int = 0
    error: float = 0.0
    cosine: float = 1.0
    _cells: dict[tuple[str, str, str], _Cell] = field(default_factory=lambda: defaultdict(_Cell))

    def add(self, trial: Trial, outcomes: list[Outcome]) -> None:
        """Takes in one trial."""
        self.configurations += 1
        for outcome in outcomes:
            self.cases += 1
            self.failures += outcome.failure is not None
            self.error = max(self.error, outcome.logits_error)
            self.cosine = min(self.cosine, outcome.cosine)
            column = "fused" if outcome.form == "fused" else str(trial.opset)
            for axis, value in (*_values_that_matter(trial), *_use_values(outcome)):
                cell = self._cells[axis, value, column]
                cell.cases += 1
                cell.error = max(cell.error, outcome.logits_error)

    def to_markdown(self, command: str, versions: dict[str, str], seconds: float) -> str:
        """The page.

        Args:
            command: What made it.
            versions: Libraries and their versions.
            seconds: How long it took.
        """
        libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
        columns = [str(opset) for opset in sorted(OPSETS)]
        lines = [
            "# Conformance: the graph is Llama 4",
            "",
            f"Made by `{command}` in {seconds:.0f} s with {libraries}.",
            "",
            "Hypothesis draws a configuration, one value on each axis, and uses of it. The configuration gets random",
            "weights, is exported at a drawn opset, simplified and fused. Both graphs are put to every use beside the",
            "`Llama4ForCausalLM` of transformers in float32. A case is one use of one graph. It passes if at every",
            f"token every logit is within {TOLERANCE.logits_error:g} of transformers' (relative to the standard",
            f"deviation of the logits), every layer's cosine is above {TOLERANCE.cosine}, every block inside the",
            f"layers is within {TOLERANCE.block_error:g}, and greedy continuations are the same tokens.",
            "",
            f"**{self.cases} cases over {self.configurations} configurations, {self.failures} failed. Worst error of a",
            f"logit {self.error:.1e}, least cosine of a layer {self.cosine:.8f}.**",
            "",
            "Each cell: number of cases, worst error of a logit. Fused graphs of all opsets are one column.",
            "",
            _line(["axis", "value", *(f"opset {column}" for column in columns), "fused"]),
            _line(["---"] * (len(columns) + 3)),
        ]
        axes = {axis: tuple(values) for axis, values in AXES.items()} | _USE_AXES
        for axis, values in axes.items():
            for value in values:
                cells = [str(self._cells[axis, value, column]) for column in (*columns, "fused")]
                lines.append(_line([axis, value, *cells]))
        return "\n".join([*lines, ""])


def _values_that_matter(trial: Trial) -> list[tuple[str, str]]:
    """The point without the axes that another one's value switches off."""
    dense = ("MoE layers", "none") in trial.point
    return [(axis, value) for axis, value in trial.point if not (dense and axis.startswith("experts"))]


def _use_values(outcome: Outcome) -> list[tuple[str, str]]:
    use = outcome.use
    if use is None:
        return [("use", "greedy")]
    return [
        ("use", use.use),
        ("padding", use.padding),
        ("positions", use.positions),
        ("batch", str(use.batch)),
    ]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
