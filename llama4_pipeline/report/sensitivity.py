"""Where rounding hurts: sensitivity by layer and weight, and by layer and expert, as a heat map."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from llama4_pipeline.report.plots import STYLE

TITLE = "Sensitivity"
CAPTION = (
    "How far the float graph's predictions move when one weight alone, or one expert, is rounded to 4 bits."
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_OUTSIDE = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}
_NOISE = ("self_attn.", "feed_forward.", ".weight", "_proj")


def draw_sensitivity(report: Mapping[str, Any]) -> Figure | None:
    """Draws the sensitivities of a quantization.

    Args:
        report: what `QuantizeReport.to_json` gives; its sensitivities are nats per token.

    Returns:
        One panel by weight and one by expert; None where nothing was measured, or nothing moves them.
    """
    by_weight = [_place(name, value) for name, value in report.get("sensitivity", {}).items()]
    by_expert = [
        (_place(name, 0.0)[0], f"{expert}", value)
        for name, values in report.get("expert_sensitivity", {}).items()
        for expert, value in enumerate(values)
    ]
    panels = [panel for panel in (by_weight, by_expert) if panel]
    values = [value for panel in panels for _, _, value in panel if value > 0]
    if not values:
        return None
    scale = LogNorm(min(values), max(values))
    columns = [len({column for _, column, _ in panel}) for panel in panels]
    rows = max(len({row for row, _, _ in panel}) for panel in panels)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 0.5 * sum(columns), 2.0 + 0.32 * rows), layout="constrained")
        axes = figure.subplots(1, len(panels), width_ratios=columns, squeeze=False)[0]
        for each, panel, label in zip(axes, panels, ("weight", "expert"), strict=False):
            mesh = _draw(each, panel, scale, label)
        figure.colorbar(mesh, ax=list(axes), label="nats per token", shrink=0.9)
    return figure


def _draw(axes: Axes, cells: Sequence[tuple[str, str, float]], scale: LogNorm, label: str) -> Any:
    rows = list(dict.fromkeys(row for row, _, _ in cells))
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    grid = np.full((len(rows), len(columns)), np.nan)
    for row, column, value in cells:
        grid[rows.index(row), columns.index(column)] = max(value, scale.vmin or 0)
    mesh = axes.pcolormesh(np.ma.masked_invalid(grid), norm=scale, cmap="viridis")
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=0 if label == "expert" else 60)
    if label == "weight":
        axes.tick_params(axis="x", labelsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return mesh


def _place(name: str, value: float) -> tuple[str, str, float]:
    """Row, column and value of a weight."""
    found = _LAYER.fullmatch(name)
    if not found:
        return "outside", _OUTSIDE.get(name, name), value
    column = found[2]
    for noise in _NOISE:
        column = column.replace(noise, "")
    return f"layer {found[1]}", "experts" if column.startswith("experts") else column.replace(".", " "), value
