"""Where the artifacts of this installation are: a directory, or a URL that several machines share."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from llama4_pipeline.errors import InputError

if TYPE_CHECKING:
    from llama4_pipeline.artifacts.store import Store

ARTIFACTS_VARIABLE = "LLAMA4_PIPELINE_ARTIFACTS"
COPIES_VARIABLE = "LLAMA4_PIPELINE_COPIES"
HISTORY = "history"
"""Name beside those of models, under which measurements are kept."""

_PASSWORD = re.compile(r"://[^/@:]*:.*@")  # a secret key may have slashes


def artifacts_root() -> str:
    """Directory or URL of the store: $LLAMA4_PIPELINE_ARTIFACTS, else artifacts/ in $DAGSTER_HOME or this directory.

    Raises:
        InputError: The URL holds a password, or "~" stands for a home that is not known.
    """
    named = os.environ.get(ARTIFACTS_VARIABLE)
    if named:
        return checked_root(named)
    return str(Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / "artifacts")


def checked_root(named: str) -> str:
    """A root as a user named it, in $LLAMA4_PIPELINE_ARTIFACTS or a run's configuration: a URL or an absolute path.

    Raises:
        InputError: as `artifacts_root`.
    """
    if _PASSWORD.search(named):
        raise InputError(
            f"{ARTIFACTS_VARIABLE}, or `root` of a run, holds a password, which logs and metadata would show: leave "
            "out USER:PASSWORD@ and set the variables of the store's client (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return named if "://" in named else str(_at_home(Path(named), ARTIFACTS_VARIABLE).absolute())


def open_store(root: str | None = None) -> "Store":
    """The store at a directory or URL, `artifacts_root()` by default.

    Of a URL, this machine keeps copies in $LLAMA4_PIPELINE_COPIES, by default in the user's cache directory.

    Raises:
        InputError: The URL cannot be reached, or there is no place for copies.
    """
    root = root or artifacts_root()
    if "://" not in root:
        from llama4_pipeline.artifacts.store import Store

        return Store(Path(root))
    from llama4_pipeline.artifacts.shared_store import SharedStore

    copies = Path(os.environ.get(COPIES_VARIABLE) or "~/.cache/llama4-pipeline")
    return SharedStore(root, _at_home(copies, COPIES_VARIABLE) / re.sub(r"[^\w.-]+", "-", root))


def _at_home(path: Path, variable: str) -> Path:
    """With the home directory in place of a leading "~"; a container's user may have none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}; set ${variable} to a directory written out") from error


def history_directory(root: str) -> str:
    """Where the measurements of a store are kept for good: plain files, which `store gc` leaves alone."""
    return f"{root.rstrip('/')}/{HISTORY}"
