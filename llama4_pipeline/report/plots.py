"""The four pictures of a benchmark: latency, throughput by batch, memory, quality against size.

Each function draws one figure from the rows of a table, or gives None where nothing of the kind was measured.
`to_svg` makes a figure that takes its ink from the page around it (light or dark), `to_png` one on white for
anywhere else. Colors are those of Okabe and Ito and shapes differ too: no picture needs color to be read.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from llama4_pipeline.metrics.measurement import Percentiles
from llama4_pipeline.report.rows import Row
from llama4_pipeline.units import format_bytes, format_number

WIDTH_INCHES = 5.4
_INK = "#123456"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
_SMALLEST_DIVERGENCE = 1e-6
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "llama4-pipeline",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
}
NUMBERS = FuncFormatter(lambda value, _: f"{value:,g}")
_DIVERGENCES = FuncFormatter(lambda value, _: f"{'≤ ' if value == _SMALLEST_DIVERGENCE else ''}{value:g}")
_BYTES = FuncFormatter(lambda value, _: format_bytes(value) if value else "0")


@dataclass(frozen=True)
class Plot:
    """One picture: a name for files, a title and a sentence for people, and the function that draws it."""

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Row]], Figure | None]


@dataclass(frozen=True)
class Picture:
    """One picture that was drawn, of something else than the rows of the table."""

    name: str
    title: str
    caption: str
    figure: Figure


def latency(rows: Sequence[Row]) -> Figure | None:
    """Time per token by engine: mark at p50, stroke at p90, line to p99; greedy, and paler below it sampling."""
    ranges = [
        (row.name, look_of(place), row.measurement.decode_latency_ms, row.measurement.sampling_latency_ms)
        for place, row in enumerate(rows)
    ]
    timed = [(name, look, greedy, pale) for name, look, greedy, pale in ranges if greedy is not None]
    if not timed:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _named_lines(
            [f"{name}: {format_number(greedy.p50)} ms" for name, _, greedy, _ in timed]
        )
        for line, (_, look, greedy, sampling) in enumerate(timed):
            for height, percentiles, alpha in ((line, greedy, 1.0), (line + 0.22, sampling, 0.5)):
                if percentiles is not None:
                    _draw_percentiles(axes, height, percentiles, look, alpha)
        _logarithmic_if_wide(axes)
        axes.set_xlabel("ms per token: mark p50, stroke p90, end p99; pale: sampling")
    return figure


def throughput(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second of all rows of a batch together, by batch size."""
    batches = sorted({batch for row in rows for batch in row.measurement.throughput})
    if not batches:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            points = sorted(row.measurement.throughput.items())
            if points:
                color, shape = look_of(place)
                axes.plot(*zip(*points, strict=True), shape, ls="-", lw=2, ms=7, color=color, label=row.name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(NUMBERS)
        axes.grid(axis="y")
        axes.set_xlabel("batch size")
        axes.set_ylabel("tokens per second")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def memory(rows: Sequence[Row]) -> Figure | None:
    """Peak memory of each engine's own process, pale; inside it the size of the model's weights as stored."""
    peaks = [
        (row.name, look_of(place), row.measurement.peak_memory_bytes, row.measurement.model_bytes)
        for place, row in enumerate(rows)
    ]
    held = [(name, look, peak, model or 0) for name, look, peak, model in peaks if peak is not None]
    if not held:
        return None
    largest = max(peak for _, _, peak, _ in held)
    with matplotlib.rc_context(STYLE):
        figure, axes = _named_lines([name for name, *_ in held])
        for line, (_, (color, _), peak, model) in enumerate(held):
            axes.barh(line, peak, height=0.36, color=color, alpha=0.35)
            axes.barh(line, model, height=0.16, color=color)
            axes.text(peak + 0.01 * largest, line, format_bytes(peak), va="center", fontsize="small")
        _byte_axis(axes, 1.17 * largest)
        axes.set_xlabel("peak memory (pale), model file (dark)")
    return figure


def quality_by_size(rows: Sequence[Row]) -> Figure | None:
    """What a smaller model costs: KL divergence from PyTorch against the size of the model's file."""
    points = [
        (row.name, look_of(place), each.model_bytes, max(each.kl_divergence, _SMALLEST_DIVERGENCE))
        for place, row in enumerate(rows)
        if (each := row.measurement).model_bytes is not None and each.kl_divergence is not None
    ]
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for name, (color, shape), size, divergence in points:
            axes.plot(size, divergence, shape, color=color, markersize=9, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_DIVERGENCES)
        axes.yaxis.set_minor_locator(NullLocator())
        _byte_axis(axes, 1.08 * max(size for _, _, size, _ in points))
        axes.grid()
        axes.set_xlabel("model file")
        axes.set_ylabel("KL divergence, nats per token")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


PLOTS = (
    Plot(
        "latency",
        "Latency",
        "Time per token, greedy and sampling: half of the tokens are faster than the mark.",
        latency,
    ),
    Plot(
        "throughput",
        "Throughput by batch",
        "Generated tokens per second, all rows of a batch together.",
        throughput,
    ),
    Plot(
        "memory", "Memory", "The most that each engine's own process held, and the weights as stored.", memory
    ),
    Plot(
        "quality_by_size",
        "Quality against size",
        "What a smaller model loses; lower is better.",
        quality_by_size,
    ),
)


def to_png(figure: Figure) -> bytes:
    """The figure on white, under 100 kB: small enough for an asset's metadata."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white")
    return stream.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element without background, its text and lines in the color of the page's text."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # numbered from 1 in each figure: not unique on a page


def row_color(place: int) -> str:
    """Color of the row at a place in the table, in every picture and beside its name."""
    return _COLORS[place % len(_COLORS)]


def look_of(place: int) -> tuple[str, str]:
    """Color and shape of the row at a place in the table: the same in every picture."""
    return row_color(place), _SHAPES[place % len(_SHAPES)]


def _named_lines(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one line for each name, which stands above its line: readable on a narrow screen."""
    figure = Figure(figsize=(WIDTH_INCHES, 0.9 + 0.62 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(len(names) - 0.6, -0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for line, name in enumerate(names):
        axes.text(0.0, line - 0.36, name, transform=axes.get_yaxis_transform(), va="center")
    axes.grid(axis="x")
    return figure, axes


def _draw_percentiles(
    axes: Axes, height: float, percentiles: Percentiles, look: tuple[str, str], alpha: float
) -> None:
    color, shape = look
    axes.plot([percentiles.p50, percentiles.p99], [height, height], color=color, linewidth=2, alpha=alpha)
    axes.plot(percentiles.p90, height, "|", color=color, markersize=8, markeredgewidth=2, alpha=alpha)
    axes.plot(percentiles.p50, height, shape, color=color, markersize=7 * alpha**0.5, alpha=alpha)


def _byte_axis(axes: Axes, right: float) -> None:
    axes.set_xlim(0, right)
    axes.xaxis.set_major_formatter(_BYTES)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _logarithmic_if_wide(axes: Axes) -> None:
    """A logarithmic x axis with plain figures where the values spread over more than a factor of eight."""
    if axes.dataLim.x1 > 8 * axes.dataLim.x0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(NUMBERS)
