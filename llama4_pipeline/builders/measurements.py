"""Measurements as a stage's artifact."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.builders.files import MEASUREMENTS

if TYPE_CHECKING:
    from llama4_pipeline.metrics.measurement import Measurement

SHORT_OF_MEMORY = "short_of_memory"


def write_measurements(measurements: Sequence["Measurement"], directory: Path) -> dict[str, Any]:
    """Writes records in the order of the rows, and the day.

    Returns:
        Facts for the manifest: `left_out`, engines with the reason, and `SHORT_OF_MEMORY`, the bytes that the smallest
        of those wants which did not fit into memory, or None.
    """
    record = {
        "measured_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": [measurement.model_dump(mode="json") for measurement in measurements],
    }
    (directory / MEASUREMENTS).write_text(json.dumps(record, indent=1))
    short = [row.short_of_memory_bytes for row in measurements if row.short_of_memory_bytes]
    return {
        "left_out": {row.engine: row.unavailable for row in measurements if row.unavailable},
        SHORT_OF_MEMORY: min(short, default=None),
    }


def read_measurements(directory: Path) -> list["Measurement"]:
    """Reads the records of a measurement's artifact."""
    from llama4_pipeline.metrics.measurement import Measurement

    return [Measurement.model_validate(row) for row in _record(directory)["rows"]]


def measured_on(directory: Path) -> datetime.date:
    """The day of a measurement's artifact, UTC."""
    return datetime.date.fromisoformat(_record(directory)["measured_on"])


def _record(directory: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((directory / MEASUREMENTS).read_bytes())
    return record
