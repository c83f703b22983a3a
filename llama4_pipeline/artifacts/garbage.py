"""Removal of what the store no longer needs."""

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

SCRATCH = ".scratch-"
DISCARDED = ".discarded-"
UNSENT = ".unsent-"
_OF_A_KEY = re.compile(
    rf"(?:{'|'.join(map(re.escape, (SCRATCH, DISCARDED, UNSENT)))})?(?P<key>[0-9a-f]{{16}})(?:-.*)?"
)


@dataclass(frozen=True)
class Freed:
    """What a collection removed. Bytes that a kept artifact still holds by a hard link are not counted."""

    artifacts: int
    bytes: int

    def __add__(self, other: "Freed") -> "Freed":
        return Freed(self.artifacts + other.artifacts, self.bytes + other.bytes)


def free(entry: Path) -> Freed:
    """Removes an artifact, or a scratch or discarded entry that a killed builder left."""
    freed = Freed(int(not entry.name.startswith(".")), _bytes_only_in(entry))
    remove(entry)
    return freed


def remove(entry: Path) -> None:
    """Removes a file or directory; an artifact loses its name first, so that no half one is left."""
    doomed = entry if entry.name.startswith(".") else discarded_name(entry)
    if doomed != entry:
        entry.rename(doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()


def key_of(entry: Path) -> str | None:
    """The key of an artifact, or of what stands beside it; None of what others keep below the store's root."""
    named = _OF_A_KEY.fullmatch(entry.name)
    return named and named["key"]


def discarded_name(entry: Path) -> Path:
    """A free name beside an artifact under which it can wait for its removal."""
    return entry.with_name(f"{DISCARDED}{entry.name}-{uuid.uuid4().hex[:8]}")


def _bytes_only_in(entry: Path) -> int:
    """Bytes that the disk gets back when this entry goes: a file counts if it has no name elsewhere."""
    names: dict[tuple[int, int], int] = {}
    size = 0
    for path in [entry, *entry.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            inode = stat.st_dev, stat.st_ino
            names[inode] = names.get(inode, 0) + 1
            size += stat.st_size if names[inode] == stat.st_nlink else 0
    return size
