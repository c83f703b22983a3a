"""Hard links instead of copies: weights that a stage does not change exist once on the disk."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file, or each file of a directory, a second name; copies where the file system has no hard
    links.

    A linked file must not be written to afterwards: both names show the change. The store notices such a
    change by size and time of modification.

    Args:
        source: A file, or a directory whose content goes below `target`. Symbolic links are followed.
        target: The new name; the directory above it must exist. Existing files are not replaced.

    Raises:
        FileExistsError: A target file exists already.
    """
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for child in sorted(source.iterdir()):
            link_or_copy(child, target / child.name)
        return
    if target.exists():
        raise FileExistsError(f"{target} exists")
    original = source.resolve()
    try:
        os.link(original, target)
    except OSError:
        shutil.copy2(original, target)


def copied_bytes(sources: Iterable[Path], directory: Path) -> int:
    """Bytes that `link_or_copy` writes for files going to a directory: across file systems there are no links."""
    states = [source.stat() for source in sources]
    here = directory.stat().st_dev
    return sum(state.st_size for state in states if state.st_dev != here)
