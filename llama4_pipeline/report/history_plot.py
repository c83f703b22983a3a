"""The picture of a measurement's history: time per token of each engine, night by night."""

import matplotlib
import pandas as pd
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from llama4_pipeline.report.history import comparable, compare
from llama4_pipeline.report.plots import NUMBERS, STYLE, WIDTH_INCHES, look_of

_FIGURE = "latency_p50_ms"


def series(history: pd.DataFrame, digest: str) -> Figure | None:
    """Time per token by day up to one measurement, which is ringed where it is slower than usual.

    Args:
        history: As `llama4_pipeline.report.history.read` gives it.
        digest: Of the measurement, which is in the history.

    Returns:
        None where no engine was measured.
    """
    rows = comparable(history, digest).dropna(subset=[_FIGURE])
    if rows.empty:
        return None
    slow = {each.engine for each in compare(history, digest) if each.slower and each.figure == _FIGURE}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for place, (engine, points) in enumerate(rows.groupby("engine", sort=False)):
            color, shape = look_of(place)
            points = points.sort_values("measured_at")
            times, figures = points["measured_at"], points[_FIGURE]
            axes.plot(times, figures, shape, ls="-", lw=1.5, ms=5, color=color, label=engine)
            if engine in slow:
                axes.plot(times.iloc[-1], figures.iloc[-1], "o", ms=14, mfc="none", mec=color, mew=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(NUMBERS)
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.grid(axis="y")
        axes.set_ylabel("ms per token, p50")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
