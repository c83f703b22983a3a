"""Which state of the package a measurement was taken with."""

import subprocess
from pathlib import Path


def commit_of(package: Path) -> str | None:
    """The last commit that touched a package, with `-dirty` behind it where what is on disk is another state.

    Args:
        package: A directory.

    Returns:
        None where it is no part of a git checkout.
    """
    try:
        commit = _git(package, "log", "-1", "--format=%H", "--", ".")
        edits = _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    if not commit:
        return None
    return f"{commit}-dirty" if edits else commit


def _git(directory: Path, *words: str) -> str:
    command = ["git", "-C", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
