"""The machine that figures come from: processor, memory, library versions, GPU."""

import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

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


class Machine(BaseModel):
    """What a person needs to know about a machine to read its figures."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    """Its name and, on x86, family and model, since virtual machines give several generations one name."""
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


def describe_machine(read_bandwidth: float | None = None) -> Machine:
    """Describes this machine without measuring anything.

    Args:
        read_bandwidth: bytes per second, from `metrics.bandwidth`.
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


def _cpu_name() -> str:
    name = _cpu_fact("model name") or platform.processor() or platform.machine()
    family, model = _cpu_fact("cpu family"), _cpu_fact("model")
    return f"{name}, family {family} model {model}" if family and model else name


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
