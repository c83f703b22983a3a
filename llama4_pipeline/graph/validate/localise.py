"""Where a graph leaves the model.

The place is the first block, in the order of computation, with a figure past its bound: everything before
it, on every token, is within.
"""

from dataclasses import dataclass

from llama4_pipeline.graph.validate.compare import Figures, Tolerance, beyond, chosen_experts
from llama4_pipeline.graph.validate.probes import StepValues


@dataclass(frozen=True)
class Place:
    """The first block that is off, and one token of it.

    Attributes:
        layer: -1 outside the layers.
        block: As in the names of the probes.
        row: Of the batch.
        column: In the step.
        figure: `error` or `cosine`.
        value: Of the figure.
        bound: That it passes.
        expert: The expert that the reference chooses for the token, in the block `experts`.
        cause: The known mistake that explains the graph's values, where there is one.
    """

    layer: int
    block: str
    row: int
    column: int
    figure: str
    value: float
    bound: float
    expert: int | None = None
    cause: str | None = None


def locate(figures: list[Figures], reference: StepValues, tolerance: Tolerance) -> Place | None:
    """The first block past a bound, or None if all are within."""
    for found in figures:
        passed = beyond(found, tolerance)
        if passed is None:
            continue
        row, column = found.worst
        probe = found.probe
        expert = None
        if probe.block == "experts":
            logits = reference.values[f"layers.{probe.layer}.router_logits"][row, column]
            expert = int(chosen_experts(logits, 1)[0])
        return Place(probe.layer, probe.block, row, column, *passed, expert)
    return None
