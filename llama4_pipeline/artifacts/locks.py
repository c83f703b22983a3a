"""File locks between processes. The kernel releases them when their holder dies, also by `kill -9`."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock alone; calls `on_wait` if somebody else has it, then waits as long as it takes."""
    with _locked(path, fcntl.LOCK_EX, on_wait):
        yield


@contextmanager
def shared(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock together with other readers; waits while somebody has it alone."""
    with _locked(path, fcntl.LOCK_SH, on_wait):
        yield


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Holds a lock alone if nobody has it; yields whether that is so."""
    descriptor = _open(path)
    try:
        yield _try(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, kind: int, on_wait: Callable[[], None]) -> Iterator[None]:
    descriptor = _open(path)
    try:
        if not _try(descriptor, kind):
            on_wait()
            fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
