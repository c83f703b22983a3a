"""Where the artifacts of this installation are."""

import os
from pathlib import Path

ARTIFACTS_VARIABLE = "LLAMA4_PIPELINE_ARTIFACTS"


def artifacts_root() -> Path:
    """The store's directory: $LLAMA4_PIPELINE_ARTIFACTS, else artifacts/ in $DAGSTER_HOME, else in this directory."""
    named = os.environ.get(ARTIFACTS_VARIABLE)
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / "artifacts"


def history_directory(root: str) -> str:
    """Where the measurements of a store are kept for good: plain files, which `store gc` leaves alone."""
    return f"{root}/history"
