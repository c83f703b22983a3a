"""How new tokens are cut into runs that a fused graph takes.

GroupQueryAttention on the CPU takes several new tokens behind a cache for one row only, and a chunked layer's cache
holds one chunk, which the new tokens of a run may not leave. Padding between tokens ends a run too, so that a row is
turned by one number of places. Cutting the mask behind a run keeps the place of its tokens in the whole context, so
cutting changes no result.
"""

import numpy as np


def need_cutting(mask: np.ndarray, new: int, longest: int, chunk_size: int) -> bool:
    """Whether a fused graph cannot take this input in one run.

    Args:
        mask: int64 [B, T] over cached and new tokens.
        new: how many of them are new.
        longest: most tokens of a run.
        chunk_size: tokens of a chunk, counted from each row's first real token.
    """
    batch, total = mask.shape
    if new == 1:
        return False
    if new > min(longest, chunk_size) or (batch > 1 and total > new):
        return True
    begins = np.diff(mask[:, -new:], axis=1, prepend=0) > 0
    begun = np.maximum(total - new - mask.argmax(axis=1), 0)
    return bool((begins.sum(axis=1) > 1).any() or (begun % chunk_size + new > chunk_size).any())


def cut(row: np.ndarray, new: int, longest: int, chunk_size: int) -> list[tuple[int, int]]:
    """The unbroken runs of real tokens of one row, each within one chunk and not longer than `longest`.

    Args:
        row: int64 [T], as `need_cutting`.
        new: as `need_cutting`.
        longest: as `need_cutting`.
        chunk_size: as `need_cutting`.

    Returns:
        Begin and end of each run, counted from the first new token.
    """
    past, first = len(row) - new, int(row.argmax())
    edges = np.flatnonzero(np.diff(row[past:], prepend=0, append=0)).tolist()
    runs = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        while begin < end:
            left_in_chunk = chunk_size - (past + begin - first) % chunk_size
            stop = min(begin + min(longest, left_in_chunk), end)
            runs.append((begin, stop))
            begin = stop
    return runs
