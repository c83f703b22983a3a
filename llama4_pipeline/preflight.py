"""Before work starts: what it needs against what this machine has, so that nothing fails at 90 percent."""

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from llama4_pipeline.device import device_free_bytes
from llama4_pipeline.errors import InputError
from llama4_pipeline.needs import Needs
from llama4_pipeline.units import format_bytes

_CGROUP_FILES = (  # (limit, usage) of version 2 and version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Room:
    """What there is: bytes of memory that may still be taken, and of disk that are free."""

    memory_bytes: int
    disk_bytes: int


def room(directory: Path) -> Room:
    """Memory within the limits on this process, and disk on the file system of a directory (or its nearest parent)."""
    place = directory.resolve()
    while not place.exists():
        place = place.parent
    memory = min(psutil.virtual_memory().available, _left_of_cgroup(), _left_of_process())
    return Room(memory, shutil.disk_usage(place).free)


def graph_bytes(graph: Path) -> int:
    """Bytes of the model and its weights in a graph directory."""
    return sum(file.stat().st_size for file in graph.glob("model.onnx*"))


def require(what: str, needs: Needs, directory: Path, *, on_gpu: bool = False) -> None:
    """Refuses work that cannot come to its end.

    Args:
        what: names the work in the message.
        needs: its memory and disk.
        directory: where it writes.
        on_gpu: whether it computes on the GPU, so that weights lie in its memory.

    Raises:
        InputError: memory or disk is short; with the figures.
    """
    there = room(directory)
    if on_gpu:
        needs, free = needs.on_gpu(), device_free_bytes()
        if needs.device_bytes > free:
            raise InputError(
                f"{what} needs {format_bytes(needs.device_bytes)} of device memory, {format_bytes(free)} are free; "
                "end what else runs on the GPU, or take a larger one"
            )
    if needs.memory_bytes > there.memory_bytes:
        raise InputError(
            f"{what} needs {format_bytes(needs.memory_bytes)} of memory, {format_bytes(there.memory_bytes)} are free; "
            "end other programs, or take a machine with more"
        )
    if needs.disk_bytes > there.disk_bytes:
        raise InputError(
            f"no space for {what} in {directory}: {format_bytes(needs.disk_bytes)} needed, "
            f"{format_bytes(there.disk_bytes)} free on its file system; free some, or name a directory elsewhere"
        )


def _left_of_cgroup() -> int:
    """What the control groups of this process leave it; page cache counts as used there but gives way."""
    left = psutil.virtual_memory().total
    for line in _OWN_CGROUPS.read_text().splitlines() if _CGROUPS.is_dir() else []:
        _, controllers, path = line.split(":", 2)
        mount = _CGROUPS / controllers if controllers else _CGROUPS
        own = mount / path.lstrip("/")
        for limit_file, usage_file in _CGROUP_FILES:
            for group in (own, *(each for each in own.parents if each.is_relative_to(mount))):
                limit = _number(group / limit_file)
                used = _number(group / usage_file)
                if limit is not None and used is not None:
                    left = min(left, limit - used + _page_cache(group))
    return max(left, 0)


def _left_of_process() -> int:
    """What `ulimit -v` and `ulimit -d` leave."""
    total = psutil.virtual_memory().total
    memory = psutil.Process().memory_info()
    limits = ((resource.RLIMIT_AS, memory.vms), (resource.RLIMIT_DATA, memory.data))
    return min(
        (
            soft - used
            for kind, used in limits
            if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY
        ),
        default=total,
    )


def _page_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines)
    # Version 1 counts the groups below apart, version 2 with their parent.
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no file, or no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
