"""The error by layer and by position, as a heat map."""

from io import BytesIO

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from llama4_pipeline.graph.validate.report import ValidationReport, position_bins, row_label

_SMALLEST = 1e-8


def draw_errors(report: ValidationReport) -> bytes:
    """Draws the largest error of every layer at every position.

    Returns:
        A PNG image.
    """
    edges, errors = position_bins(report.error_by_position)
    positions = report.error_by_position.shape[1]
    largest = max(10 * _SMALLEST, float(np.nanmax(np.where(np.isfinite(errors), errors, np.nan), initial=0)))
    shown = np.clip(np.nan_to_num(errors, nan=np.nan, posinf=largest), _SMALLEST, largest)
    labels = [row_label(row) for row in report.layers]
    figure = Figure(figsize=(9, 1.6 + 0.28 * len(labels)), layout="constrained", dpi=110)
    axes = figure.subplots()
    corners = np.append(edges, positions)
    mesh = axes.pcolormesh(
        corners,
        np.arange(len(labels) + 1),
        np.ma.masked_invalid(shown),
        norm=LogNorm(_SMALLEST, largest),
        cmap="magma",
    )
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
    axes.invert_yaxis()
    axes.set_xlabel("position of the token")
    axes.set_ylabel("layer")
    verdict = "passed" if report.passed else "failed"
    axes.set_title(f"{report.form} graph, {report.precision}, against PyTorch: {verdict}", fontsize=10)
    figure.colorbar(mesh, label="largest error / standard deviation")
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
