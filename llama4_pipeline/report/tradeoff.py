"""What each method of quantization loses against what its graph weighs, one panel a model."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from llama4_pipeline.metrics.method_result import FLOAT, MethodResult
from llama4_pipeline.report.plots import STYLE, row_color
from llama4_pipeline.units import format_bytes

TITLE = "Methods of quantization"
CAPTION = (
    "How far each method's graph strays from PyTorch float32, by its size; lower and further left is better."
)
_COLORS = {"int8": row_color(0), "int4": row_color(1)}


def draw_tradeoff(compared: Mapping[str, Sequence[MethodResult]]) -> Figure | None:
    """KL divergence from PyTorch float32, with its standard error, against the size of the graph.

    Args:
        compared: rows by model; the float graph's is not drawn.

    Returns:
        One panel for each model; None where no method was tried.
    """
    drawn = {
        model: [row for row in rows if (row.precision, row.method) != FLOAT]
        for model, rows in compared.items()
    }
    drawn = {model: rows for model, rows in drawn.items() if rows}
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(drawn), 4.2), layout="constrained")
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (model, rows) in zip(panels, drawn.items(), strict=True):
            _draw(axes, rows)
            if len(drawn) > 1:
                axes.set_title(model)
    return figure


def _draw(axes: Axes, rows: Sequence[MethodResult]) -> None:
    for row in rows:
        divergence, error = row.quality.kl_divergence, row.quality.kl_stderr
        assert divergence is not None
        color = _COLORS[row.precision]
        axes.errorbar(row.model_bytes, divergence, yerr=error, fmt="o", color=color, markersize=6)
        axes.annotate(
            row.name, (row.model_bytes, divergence), xytext=(7, -3),
            textcoords="offset points", fontsize="small",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.set_xlim(0.9 * min(row.model_bytes for row in rows), 1.35 * max(row.model_bytes for row in rows))
    axes.grid()
    axes.set_xlabel("size")
    axes.set_ylabel("KL divergence, nats per token")
