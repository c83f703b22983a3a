"""Notes of a stage about its work, kept in the artifact beside its content: reports, plots, timings."""

import json
from pathlib import Path
from typing import Any

NOTES = "notes"
"""The directory that the store leaves out of an artifact's digest."""


def note(out: Path, name: str, content: bytes | str | dict[str, Any]) -> None:
    """Writes one note; a dict becomes JSON."""
    if isinstance(content, dict):
        content = json.dumps(content, indent=1, allow_nan=False)
    (out / NOTES).mkdir(exist_ok=True)
    (out / NOTES / name).write_bytes(content.encode() if isinstance(content, str) else content)
