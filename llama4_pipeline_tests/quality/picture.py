"""What each method loses against what it weighs, one panel a model."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from llama4_pipeline.report.plots import STYLE, row_color
from llama4_pipeline.units import format_bytes
from llama4_pipeline_tests.quality.measure import Row

_COLORS = {"int8": row_color(0), "int4": row_color(1)}


def draw_tradeoff(measured: Mapping[str, Sequence[Row]]) -> Figure:
    """KL divergence from PyTorch float32, with its standard error, against the size of the model's files."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(measured), 4.2), layout="constrained")
        for axes, (model, rows) in zip(
            figure.subplots(1, len(measured), squeeze=False)[0], measured.items(), strict=True
        ):
            _draw(axes, model, [row for row in rows if row.precision in _COLORS])
    return figure


def _draw(axes: Axes, model: str, rows: Sequence[Row]) -> None:
    for row in sorted(rows, key=lambda each: each.bytes):
        divergence, error = row.quality.kl_divergence, row.quality.kl_stderr
        color = _COLORS[row.precision]
        axes.errorbar(row.bytes, divergence, yerr=error, fmt="o", color=color, markersize=6)
        axes.annotate(
            f"{row.precision} {row.method}", (row.bytes, divergence), xytext=(7, -3), textcoords="offset points",
            fontsize="small",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.set_xlim(0.9 * min(row.bytes for row in rows), 1.35 * max(row.bytes for row in rows))
    axes.grid()
    axes.set_title(model)
    axes.set_xlabel("size")
    axes.set_ylabel("KL divergence, nats per token")
