"""A full disk, in whatever exception a library tells of it."""

import errno
import re

_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
# safetensors and C++ libraries put the system's words into exceptions of their own; numpy's tofile its own.
_SPACE_WORDS = re.compile(r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written")


def is_out_of_space(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, says that a disk or quota is full."""
    chain: BaseException | None = error
    seen: set[int] = set()  # Dagster raises an error anew within what it wrapped it in: a ring
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if isinstance(chain, OSError) and chain.errno in _SPACE_ERRORS:
            return True
        if _SPACE_WORDS.search(str(chain)):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
