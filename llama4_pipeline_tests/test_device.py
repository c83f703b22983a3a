"""Which device the pipeline computes on."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from llama4_pipeline import device
from llama4_pipeline.device import DEVICE_VARIABLE, device_free_bytes, find_device
from llama4_pipeline.errors import InputError

_TWO_GPUS = """
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetPCIBusId(char *text, int length, int device) { strncpy(text, "0000:3B:00.0", length); return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, long *handle) {
  *handle = strcmp(address, "0000:3B:00.0") ? 1 : 2;
  return 0;
}
int nvmlDeviceGetMemoryInfo(long handle, unsigned long long *memory) {
  memory[0] = 80; memory[1] = handle == 2 ? 70 : 5; memory[2] = memory[0] - memory[1];
  return 0;
}
"""


def test_a_machine_without_a_gpu_is_for_the_cpu_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: None)
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert find_device().name == "cpu"
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert find_device() == device.Device("cuda", f"{DEVICE_VARIABLE} asks for it")


def test_a_gpu_is_left_alone_where_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: "a GPU")
    monkeypatch.setattr(device, "missing_cuda_build", lambda: None)
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert (find_device().name, find_device().gpu) == ("cuda", "a GPU")
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    assert find_device().name == "cpu"


def test_what_is_asked_for_is_not_taken_back_for_want_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: "a GPU")
    monkeypatch.setattr(device, "missing_cuda_build", lambda: "onnxruntime-gpu is not installed")
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert find_device().name == "cpu"
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert (find_device().name, find_device().gpu) == ("cuda", "a GPU")


def test_a_device_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "tpu")
    with pytest.raises(
        InputError, match="LLAMA4_PIPELINE_DEVICE='tpu' names no device: cpu and cuda are there"
    ):
        find_device()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the rule is one of x86")
def test_pytorch_runs_experts_in_float32_where_it_has_no_kernel_here() -> None:
    supported = {
        "float32": True,
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    for dtype, has_kernel in supported.items():
        assert device.pytorch_dtype(dtype, has_experts=True, device="cpu") == (
            dtype if has_kernel else "float32"
        )
        assert device.pytorch_dtype(dtype, has_experts=False, device="cpu") == dtype
    assert device.pytorch_dtype("bfloat16", has_experts=True, device="cuda") == "float16"


@pytest.mark.parametrize(
    ("features", "quick"),
    [
        (("avx2",), {"float32"}),
        (("avx2", "avx512f", "avx512_bf16"), {"float32", "bfloat16"}),
        (("avx2", "avx512f", "avx512_fp16"), {"float32", "bfloat16", "float16"}),
        (("avx2", "avx_ne_convert"), {"float32", "bfloat16", "float16"}),
    ],
)
def test_experts_by_the_processors_vectors(
    features: tuple[str, ...], quick: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("llama4_pipeline.device.cpu_features", lambda: features)
    types = ("float32", "bfloat16", "float16")
    assert {dtype for dtype in types if not device.missing_stacks(dtype)} == quick


def test_measurements_of_processors_with_other_vectors_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, described = device.Device("cpu", "a test"), []
    for features in (("avx2",), ("avx2", "avx512f")):
        monkeypatch.setattr("llama4_pipeline.machine.cpu_features", lambda features=features: features)
        described.append(cpu.machine())
    assert described[0] != described[1]


def test_measurements_of_two_generations_of_one_name_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, described = device.Device("cpu", "a test"), []
    for model in ("1", "49"):
        facts = {"model name": "AMD EPYC", "cpu family": "23", "model": model}
        monkeypatch.setattr("llama4_pipeline.machine._cpu_fact", lambda key, facts=facts: facts.get(key, ""))
        described.append(cpu.machine())
    assert [each["cpu"] for each in described] == [
        "AMD EPYC, family 23 model 1",
        "AMD EPYC, family 23 model 49",
    ]


@pytest.mark.skipif(not shutil.which("cc"), reason="builds the drivers of a machine that is not here with cc")
def test_a_gpu_is_the_one_that_cuda_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers of a machine with two, of which CUDA_VISIBLE_DEVICES left the second."""
    library = tmp_path / "drivers.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=_TWO_GPUS, text=True, check=True)
    drivers = ctypes.CDLL(str(library))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: drivers)
    assert device_free_bytes() == 70
