"""The benchmark table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.measurements import read_measurements


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the benchmark table as Parquet, CSV and Markdown.

    Args:
        inputs: `benchmarks`.
        parameters: `model` and `trained`.
        out: The directory to fill.

    Returns:
        The number of rows.
    """
    from llama4_pipeline.report.table import write_tables

    measurements = read_measurements(inputs["benchmarks"])
    write_tables(measurements, out, random_weights=not parameters["trained"])
    return {"rows": len(measurements)}
