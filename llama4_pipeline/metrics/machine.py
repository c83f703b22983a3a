"""The machine that figures come from: processor, memory, its measured bandwidth, library versions, GPU."""

import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict

_logger = logging.getLogger(__name__)
_LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "numpy",
    "llama-cpp-python",
    "tensorrt-llm",
)
_FEATURES = (
    "avx2",
    "avx_vnni",
    "avx_ne_convert",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_SWEEP_BYTES = 1 << 29
_SWEEPS = 4


class Machine(BaseModel):
    """What a person needs to know about a machine to read its figures."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    """That this process may use."""
    memory_bytes: int
    gpu: str | None
    system: str
    libraries: dict[str, str]
    features: tuple[str, ...] = ()
    """Vector instructions of the processor that matrix kernels make use of."""
    read_bandwidth_bytes_per_second: float | None = None
    """Of the device that was measured, at the threads that were used."""

    def identity(self) -> dict[str, object]:
        """What tells this machine from another: everything but what was measured."""
        return self.model_dump(exclude={"read_bandwidth_bytes_per_second"})


def describe_machine(read_bandwidth: float | None = None) -> Machine:
    """Describes this machine without measuring anything.

    Args:
        read_bandwidth: bytes per second, from `measure_read_bandwidth`.
    """
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpu=_gpu_name(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        libraries=library_versions(),
        features=cpu_features(),
        read_bandwidth_bytes_per_second=read_bandwidth,
    )


def cpu_features() -> tuple[str, ...]:
    """Those of the processor's vector instructions that matrix kernels make use of; empty where Linux does not tell."""
    flags = (_cpu_fact("flags") or _cpu_fact("Features")).split()
    return tuple(name for name in _FEATURES if name in flags)


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that an engine's speed depends on."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def measure_read_bandwidth(threads: int, device: str = "cpu") -> float:
    """Bytes per second of a plain read of memory that is too large for the caches.

    The fastest of a few sweeps: a neighbor on the machine can only slow a sweep down.

    Args:
        threads: that read at the same time (CPU).
        device: "cpu" or "cuda".
    """
    return _cuda_read_bandwidth() if device == "cuda" else _cpu_read_bandwidth(threads)


def _cpu_read_bandwidth(threads: int) -> float:
    size = min(_SWEEP_BYTES, psutil.virtual_memory().available // 4)
    parts = np.array_split(np.ones(size // 4, dtype=np.float32), threads)
    fastest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_SWEEPS):
            start = time.perf_counter()
            list(pool.map(np.max, parts))  # np.max reads with vector instructions and without the GIL
            fastest = min(fastest, time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / fastest


def _cuda_read_bandwidth() -> float:
    import torch

    values = torch.ones(_SWEEP_BYTES // 4, dtype=torch.float32, device="cuda")
    values.max()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    fastest = float("inf")
    for _ in range(_SWEEPS):
        begin.record()
        values.max()
        end.record()
        torch.cuda.synchronize()
        fastest = min(fastest, begin.elapsed_time(end) / 1000)
    return values.nbytes / fastest


def _cpu_name() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def _cpu_fact(key: str) -> str:
    """What Linux says of the first core; empty where it does not."""
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


@functools.cache
def _gpu_name() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        # A driver that hangs is no reason to have no figures.
        _logger.warning("the GPU goes without a name: %s", error)
        return None
    return "; ".join(answer.stdout.splitlines()) if answer.returncode == 0 else None
