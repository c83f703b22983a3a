"""Output directories, and files, that exist whole or not at all."""

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama4_pipeline.errors import InputError
from llama4_pipeline.full_disk import is_out_of_space
from llama4_pipeline.units import format_bytes


@contextmanager
def output_directory(out: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """Gives an empty directory, and publishes what the block wrote into it as `out`; leaves nothing when that fails.

    The directory is a hidden one beside `out`, or in `out` where that is there.

    Args:
        out: the directory to make; it may exist if it is empty.
        needed_bytes: what the block will write, compared with the free space first; None if unknown.

    Raises:
        InputError: `out` is not empty, cannot be made, or its file system has no room; with the figures.
    """
    target = out.resolve()
    with _hidden_directory(out, target) as root:
        free = shutil.disk_usage(root).free
        if needed_bytes is not None and needed_bytes > free:
            raise InputError(_no_space(out, needed_bytes, free))
        try:
            result = root / "result"
            result.mkdir()
            yield result
        except Exception as error:
            if not is_out_of_space(error):
                raise
            raise InputError(_no_space(out, needed_bytes, free)) from error
        try:
            _publish(result, target)
        except OSError as error:  # another wrote there meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise _not_empty(out) from error


@contextmanager
def output_file(out: Path) -> Iterator[None]:
    """Makes the missing parents of a file that the block writes, and takes away those that stay empty.

    Raises:
        InputError: a parent cannot be made, or the file cannot be written.
    """
    made = [parent for parent in out.resolve().parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        _remove_empty(made)


@contextmanager
def _hidden_directory(out: Path, target: Path) -> Iterator[Path]:
    """Makes the place for the work, and the missing parents of `out`; takes away what is not needed after."""
    # A directory that is there stays: a mount point cannot be replaced, a shell may stand in it, a group may own it.
    root = target / ".llama4-pipeline" if target.is_dir() else target.parent / f".{target.name}"
    root = root.with_name(f"{root.name}.{secrets.token_hex(4)}")
    made: list[Path] = []
    try:
        try:
            if target.is_dir() and any(target.iterdir()):
                raise _not_empty(out)
            if target.exists() and not target.is_dir():
                raise InputError(f"--out {out} is a file: name a new directory")
            made = [parent for parent in root.parents if not parent.exists()]
            root.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"--out {out} cannot be made: {error.strerror}") from error
        yield root
    finally:  # a signal may have come before the last directory was made
        if root.exists():
            shutil.rmtree(root)
        _remove_empty(made)


def _remove_empty(directories: list[Path]) -> None:
    """Of directories, the innermost first, those that exist and hold nothing."""
    for directory in directories:
        if directory.exists() and not any(directory.iterdir()):
            directory.rmdir()


def _publish(result: Path, target: Path) -> None:
    if target not in result.parents:
        result.rename(target)
        return
    if any(entry not in result.parents for entry in target.iterdir()):
        raise OSError(errno.ENOTEMPTY, "another wrote there meanwhile")
    places = {entry: target / entry.name for entry in result.iterdir()}
    try:
        for entry, place in places.items():
            entry.rename(place)
    except BaseException:  # a signal between two of them leaves none
        for entry, place in places.items():
            if place.exists() and not entry.exists():
                place.rename(entry)
        raise


def _not_empty(out: Path) -> InputError:
    return InputError(f"--out {out} is not empty: name a new directory, or empty this one")


def _no_space(out: Path, needed_bytes: int | None, free: int) -> str:
    needed = f"more than {format_bytes(free)}" if needed_bytes is None else format_bytes(needed_bytes)
    return (
        f"no space for --out {out}: {needed} needed, {format_bytes(free)} free on its file system; "
        "free some, or name a directory elsewhere"
    )
