"""The report."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.builders.files import METHODS_COMPARED, SENSITIVITY
from llama4_pipeline.builders.measurements import measured_on, read_measurements

if TYPE_CHECKING:
    from llama4_pipeline.report.plots import Picture


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the report as one page, and its plots as pictures for the asset's page.

    Args:
        inputs: `benchmarks`, `int4_graph`, whose sensitivities are drawn if it measured any, and
            `quantization_tradeoff`.
        parameters: `model` and `trained`.
        out: The directory to fill.

    Returns:
        The names of the plots that there was something to draw for.
    """
    from llama4_pipeline.report.html import render_page
    from llama4_pipeline.report.plots import PLOTS, to_png
    from llama4_pipeline.report.rows import table_rows

    pictures = list(_pictures(inputs))
    measurements = read_measurements(inputs["benchmarks"])
    page = render_page(
        measurements,
        command=f"llama4-pipeline run --model {parameters['model']}",
        measured_on=measured_on(inputs["benchmarks"]),
        random_weights=not parameters["trained"],
        pictures=pictures,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    rows = table_rows(measurements, random_weights=not parameters["trained"])
    drawn = {plot.name: figure for plot in PLOTS if (figure := plot.draw(rows)) is not None}
    drawn |= {picture.name: picture.figure for picture in pictures}
    for name, figure in drawn.items():
        (out / f"{name}.png").write_bytes(to_png(figure))
    return {"plots": list(drawn)}


def _pictures(inputs: Mapping[str, Path]) -> Iterator["Picture"]:
    """Of the quantization, as far as something was measured."""
    from llama4_pipeline.metrics.method_result import read_results
    from llama4_pipeline.report import sensitivity, tradeoff
    from llama4_pipeline.report.plots import Picture

    measured = inputs["int4_graph"] / SENSITIVITY
    results = {"": read_results(inputs["quantization_tradeoff"] / METHODS_COMPARED)}
    if figure := tradeoff.draw_tradeoff(results):
        yield Picture("tradeoff", tradeoff.TITLE, tradeoff.CAPTION, figure)
    if measured.is_file() and (figure := sensitivity.draw_sensitivity(json.loads(measured.read_bytes()))):
        yield Picture("sensitivity", sensitivity.TITLE, sensitivity.CAPTION, figure)
