"""The data sets: calibration, validation, and the two tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the JSON lines of every data set.

    Returns:
        Samples by data set.
    """
    from llama4_pipeline.data.datasets import build_datasets

    return {"datasets": build_datasets(out).to_json()}
