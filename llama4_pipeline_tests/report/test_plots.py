import pytest

from llama4_pipeline.report.plots import PLOTS, quality_by_size, to_png, to_svg
from llama4_pipeline.report.rows import table_rows

_BY_NAME = pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)


@_BY_NAME
def test_a_plot_is_a_small_png(plot, measurements):
    png = to_png(plot.draw(table_rows(measurements)))
    assert png.startswith(b"\x89PNG")
    assert len(png) < 100_000


@_BY_NAME
def test_svg_takes_the_ink_of_the_page_and_is_the_same_every_time(plot, measurements):
    svg = to_svg(plot.draw(table_rows(measurements)))
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg and "#123456" not in svg
    assert "ONNX Runtime INT4" in svg
    assert "TensorRT-LLM" not in svg
    assert svg == to_svg(plot.draw(table_rows(measurements)))


@_BY_NAME
def test_nothing_measured_gives_no_plot(plot, measurements):
    assert plot.draw(table_rows(measurements[-1:])) is None


def test_a_divergence_of_rounding_errors_stands_at_the_bottom(measurements):
    [axes] = quality_by_size(table_rows(measurements)).axes
    lowest, *_ = sorted(line.get_ydata()[0] for line in axes.lines)
    assert lowest == 1e-6
    assert axes.yaxis.get_major_formatter()(1e-6) == "≤ 1e-06"
