"""The PyTorch baseline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.measurements import write_measurements
from llama4_pipeline.builders.quality import with_quality
from llama4_pipeline.builders.requests import request


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measures transformers eager: speed and memory in a process of its own, then quality.

    Args:
        inputs: `checkpoint` and, of trained weights, `datasets`.
        parameters: `model`, `device`, `benchmark`, `trained` and `max_context`.
        out: The directory to fill.

    Returns:
        As `write_measurements`.

    Raises:
        CheckFailed: The measuring process died.
    """
    from llama4_pipeline.metrics.isolated import measure_isolated

    measured = measure_isolated(request("pytorch", parameters, checkpoint=inputs["checkpoint"]))
    judged = with_quality(measured, parameters, inputs)
    return write_measurements([judged], out)
