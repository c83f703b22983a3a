"""Peak memory: of the process and its children on the CPU, of the device on a GPU.

Peaks of two engines in one process mix; `isolated.py` gives each its own.
"""

import ctypes
import logging
import re
from pathlib import Path

import psutil

from llama4_pipeline.device import first_gpu_address
from llama4_pipeline.errors import InputError

logger = logging.getLogger(__name__)

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
        self._before = _device_used_bytes() if device == "cuda" else 0
        if device == "cpu":
            _reset_peak()

    def peak_bytes(self) -> int:
        """Most memory held since the meter was made."""
        if self._device == "cuda":
            return _device_used_bytes() - self._before
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(_high_water_mark(process.pid) for process in family)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError as error:
        logger.warning(
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


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def device_free_bytes() -> int:
    """Memory of the first visible CUDA device that nobody uses.

    Raises:
        InputError: the NVIDIA driver does not answer.
    """
    return int(_device_memory().free)


def _device_used_bytes() -> int:
    return int(_device_memory().used)


def _device_memory() -> _NvmlMemory:
    """Memory of CUDA's first device, from NVIDIA's management library: no CUDA context of ours distorts it."""
    address = first_gpu_address()
    if address is None:
        raise InputError("CUDA sees no device; check the driver, and CUDA_VISIBLE_DEVICES")
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise InputError("libnvidia-ml.so.1 does not load; device memory needs the NVIDIA driver") from error
    device, memory = ctypes.c_void_p(), _NvmlMemory()
    failed = (
        library.nvmlInit_v2()
        or library.nvmlDeviceGetHandleByPciBusId_v2(address.encode(), ctypes.byref(device))
        or library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    )
    if failed:
        raise InputError(f"NVIDIA's management library answers error {failed}; check the driver")
    return memory
