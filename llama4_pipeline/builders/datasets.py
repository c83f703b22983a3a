"""The data sets: calibration, validation, and the two tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the JSON lines of every data set.

    Args:
        inputs: None.
        parameters: `sources`, the user's own data by data set, if there are any.
        out: The directory to fill.

    Returns:
        Samples by data set.

    Raises:
        InputError: A bad row, named by file and line, or a sample that stands in two data sets.
    """
    from llama4_pipeline.data.datasets import DataSources, build_datasets

    sources = DataSources(**parameters.get("sources", {}))
    return {"datasets": build_datasets(out, sources=sources).to_json()}
