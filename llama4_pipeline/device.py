"""The device that stages compute on, and the machine that measurements belong to. Imports no heavy library."""

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from llama4_pipeline.errors import InputError
from llama4_pipeline.machine import cpu_features, describe_machine

DEVICE_VARIABLE = "LLAMA4_PIPELINE_DEVICE"
"""Environment variable that names the device, "cpu" or "cuda", where it is not to be what this machine has."""

# By distribution: whether a version of it can use a GPU, and what to say where it cannot or is not there.
_CUDA_BUILDS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "onnxruntime-gpu": (lambda version: True, "onnxruntime-gpu is not installed"),
    "torch": (lambda version: not version.endswith("+cpu"), "PyTorch is missing or a build for the CPU"),
}

# What PyTorch's kernels for stacks of matrices in a type need on an x86 processor, one of each (ideep's
# has_bf16_type_support and has_fp16_type_support). Without, a loop in one thread multiplies experts eighty times as
# slowly as in float32; a dense matrix has another kernel, slower than float32 for prompts and quicker for a token.
_STACKS = {"bfloat16": ("avx512f", "avx_ne_convert"), "float16": ("avx512_fp16", "avx_ne_convert")}


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True)
class Device:
    """Where stages compute, and why there."""

    name: Literal["cpu", "cuda"]
    reason: str
    gpu: str | None = None

    def machine(self) -> dict[str, str]:
        """What a measurement is comparable within: processor and its vectors, cores, memory, system, the GPU in use."""
        machine = describe_machine()
        description = {
            "cpu": machine.cpu,
            "vectors": " ".join(machine.features),
            "cores": str(machine.cores),
            "memory": f"{machine.memory_bytes / 2**30:.0f} GiB",
            "system": machine.system,
        }
        return description | ({"gpu": self.gpu} if self.gpu else {})


def find_device() -> Device:
    """CUDA where a GPU, its driver and the libraries' CUDA builds are there, else the CPU; or what the variable names.

    A machine without a GPU can make graphs for one.

    Raises:
        InputError: the variable names no device.
    """
    asked = os.environ.get(DEVICE_VARIABLE)
    if asked not in (None, "", "cpu", "cuda"):
        raise InputError(f"{DEVICE_VARIABLE}={asked!r} names no device: cpu and cuda are there")
    gpu, reason = first_gpu(), f"{DEVICE_VARIABLE} asks for it"
    if asked == "cpu":
        return Device("cpu", reason)
    if asked == "cuda":
        return Device("cuda", reason, gpu)
    if gpu is None:
        return Device("cpu", "no NVIDIA GPU with a driver was found")
    if missing := missing_cuda_build():
        return Device("cpu", f"{gpu} is here, but {missing}")
    return Device("cuda", f"{gpu} is here, with CUDA builds of PyTorch and ONNX Runtime", gpu)


def pytorch_dtype(stored: str, has_experts: bool, device: str) -> str:
    """What PyTorch runs a checkpoint in that is stored in a type.

    On a GPU float16; on a CPU as transformers would load it, but experts in float32 where `missing_stacks`.
    """
    if device == "cuda":
        return "float16"
    return "float32" if has_experts and missing_stacks(stored) else stored


def missing_stacks(dtype: str) -> str | None:
    """Why experts in a type take PyTorch minutes on this processor, and what to do; None where it has a kernel."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    needed = _STACKS.get(dtype, ())
    if not needed or set(needed) & set(cpu_features()):
        return None
    return f"PyTorch has no kernel for experts in {dtype} without {' or '.join(needed)}; use float32"


def missing_cuda_build(*libraries: str) -> str | None:
    """Which of the libraries, by default onnxruntime-gpu and torch, cannot use a GPU; None if all can."""
    for library in libraries or _CUDA_BUILDS:
        is_cuda_build, remedy = _CUDA_BUILDS[library]
        version = _version(library)
        if version is None or not is_cuda_build(version):
            return remedy
    return None


def first_gpu() -> str | None:
    """Name of the first visible CUDA device; None if there is none."""
    return _ask_of_first_gpu("cuDeviceGetName")


def device_free_bytes() -> int:
    """Memory of the first visible CUDA device that nobody uses.

    Raises:
        InputError: the NVIDIA driver does not answer.
    """
    return int(_device_memory().free)


def device_used_bytes() -> int:
    """What all its users together hold of it; for Raises see `device_free_bytes`."""
    return int(_device_memory().used)


def _device_memory() -> _NvmlMemory:
    """Memory of CUDA's first device, from NVIDIA's management library: no CUDA context of ours distorts it.

    CUDA counts only what `CUDA_VISIBLE_DEVICES` leaves, in an order of its own, so its first device may stand anywhere:
    its PCI address, as "0000:3B:00.0", tells which it is.
    """
    address = _ask_of_first_gpu("cuDeviceGetPCIBusId")
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


def _ask_of_first_gpu(function: str) -> str | None:
    """What a function (text, length, device) of the driver itself writes; no library of CUDA's is needed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, text = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    device = ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), 0) or getattr(driver, function)(text, len(text), device):
        return None
    return text.value.decode()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
