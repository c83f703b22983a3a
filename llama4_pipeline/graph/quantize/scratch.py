"""Memory that a thread uses again and again: to touch fresh memory costs more than the arithmetic done in it."""

import math
import threading

import numpy as np

_of_thread = threading.local()


def scratch(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of this thread, contents undefined; the next call for the same purpose gives it away again."""
    kept: dict[str, np.ndarray] = _of_thread.__dict__
    size = math.prod(shape)
    if purpose not in kept or kept[purpose].size < size:
        kept[purpose] = np.empty(size, np.float32)
    return kept[purpose][:size].reshape(shape)
