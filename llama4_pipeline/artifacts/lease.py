"""Leases between machines that share only an object store.

A lease saves work, it guards nothing: a shared store stays whole whoever writes to it. So the two cases in which two
hold the same lease (a holder that stood still for long, two waiters that take it over in the same moment) cost a stage
made twice, and no more.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llama4_pipeline.artifacts.objects import Objects

_logger = logging.getLogger(__name__)
_RENEWED_SECONDS = 15.0
_DEAD_SECONDS = 90.0
_LOOKED_SECONDS = 2.0


@contextmanager
def lease(objects: Objects, name: str, machine: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds a lease. No clocks are compared: a holder is dead if the waiter sees no sign of it for a while.

    Args:
        objects: Where the lease is kept.
        name: Of the object that is the lease.
        machine: Of the caller, which knows that nothing else on its machine holds the lease: what a killed process of
            this machine left is taken over at once.
        on_wait: Called once if somebody else holds it.
    """
    holder = f"{machine} {uuid.uuid4().hex}"
    _take(objects, name, holder, machine, on_wait)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(objects, name, holder, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        if _holds(objects, name, holder):
            objects.remove([name])


def _take(objects: Objects, name: str, holder: str, machine: str, on_wait: Callable[[], None]) -> None:
    seen: bytes | None = None
    since = time.monotonic()
    while not objects.create(name, _sign(holder)):
        found = objects.read(name)
        if found is None:
            continue
        silent = found == seen and time.monotonic() - since > _DEAD_SECONDS
        if silent or found.startswith(f"{machine} ".encode()):
            objects.write(name, _sign(holder))
            if silent:
                time.sleep(_LOOKED_SECONDS)  # another waiter may be doing the same: the last to write has it
            if _holds(objects, name, holder):
                return
        elif found != seen:
            if seen is None:
                on_wait()
            seen, since = found, time.monotonic()
        time.sleep(_LOOKED_SECONDS)


def _renew(objects: Objects, name: str, holder: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEWED_SECONDS):
        try:
            if not _holds(objects, name, holder):
                _logger.warning("%s was taken over by another machine; this stage may be made twice", name)
                return
            objects.write(name, _sign(holder))
        except Exception as error:  # each protocol has its own; a later renewal may succeed
            _logger.warning("%s was not renewed: %s", name, error)


def _sign(holder: str) -> bytes:
    return f"{holder} {uuid.uuid4().hex}".encode()


def _holds(objects: Objects, name: str, holder: str) -> bool:
    return (objects.read(name) or b"").startswith(f"{holder} ".encode())
