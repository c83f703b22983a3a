"""Hard links instead of copies: weights that a stage does not change exist once on the disk."""

import os
import shutil
import uuid
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
    """Bytes that `link_or_copy` writes for files going to a directory.

    There are no links across file systems, and none to another user's files where the kernel protects them.
    """
    return sum(source.stat().st_size for source in sources if not _can_link(source, directory))


def _can_link(source: Path, directory: Path) -> bool:
    trial = directory / f".link-{uuid.uuid4().hex}"
    try:
        os.link(source.resolve(), trial)
    except OSError:
        return False
    trial.unlink()
    return True
