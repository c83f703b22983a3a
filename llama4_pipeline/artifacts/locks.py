"""File locks between processes. The kernel releases them when their holder dies, also by `kill -9`."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama4_pipeline.errors import InputError

_PLACES = "LLAMA4_PIPELINE_ARTIFACTS, or LLAMA4_PIPELINE_COPIES for a store at a URL,"


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock alone; calls `on_wait` if somebody else has it, then waits as long as it takes.

    Raises:
        InputError: Its file cannot be made, or its file system has no locks.
    """
    with _locked(path, fcntl.LOCK_EX, on_wait):
        yield


@contextmanager
def shared(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock together with other readers; waits while somebody has it alone.

    Raises:
        InputError: Its file cannot be made, or its file system has no locks.
    """
    with _locked(path, fcntl.LOCK_SH, on_wait):
        yield


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Holds a lock alone if nobody has it; yields whether that is so.

    Raises:
        InputError: Its file cannot be made, or its file system has no locks.
    """
    descriptor = _open(path)
    try:
        yield _try(path, descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_directory(path: Path) -> Iterator[None]:
    """Holds a directory itself alone, without a file in it; waits as long as it takes.

    Where the file system locks no directories, as NFS, it holds nothing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, kind: int, on_wait: Callable[[], None]) -> Iterator[None]:
    descriptor = _open(path)
    try:
        if not _try(path, descriptor, kind):
            on_wait()
            fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """A lock is the first that is written in a place: what cannot be written shows here.

    Raises:
        InputError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): let {_PLACES} name a directory that can"
        ) from error


def _try(path: Path, descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked ({error.strerror}): let {_PLACES} name a directory of a file system with locks"
        ) from error
    return True
