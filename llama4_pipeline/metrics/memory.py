"""Peak memory: of the process and its children on the CPU, of the device on a GPU.

Peaks of two engines in one process mix; `isolated.py` gives each its own.
"""

import logging
import re
from pathlib import Path

import psutil

from llama4_pipeline.device import device_used_bytes
from llama4_pipeline.errors import InputError

_logger = logging.getLogger(__name__)

_CLEAR_PEAK = "5"  # proc_pid_clear_refs(5): reset the peak resident set size to the current one


class MemoryMeter:
    """Watches from its creation on.

    On the CPU the peak is the kernel's own high-water mark (VmHWM), which counts mapped weight files too. On CUDA it
    is the growth of the device's used memory: the engines' allocators keep what they once took, so the last reading
    is the peak, provided nobody else uses the device.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._before = device_used_bytes() if device == "cuda" else 0
        if device == "cpu":
            _reset_peak()

    def peak_bytes(self) -> int:
        """Most memory held since the meter was made."""
        if self._device == "cuda":
            return device_used_bytes() - self._before
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(_high_water_mark(process.pid) for process in family)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError as error:
        _logger.warning(
            "the peak of memory includes what this process did before: clear_refs: %s", error.strerror
        )


def _high_water_mark(pid: int) -> int:
    """VmHWM of a process in bytes; 0 for one that has just ended."""
    status = Path(f"/proc/{pid}/status")
    if not Path("/proc/self/status").is_file():
        raise InputError("peak memory is read from /proc, which this system lacks; measure on Linux")
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0
