"""Peaks of memory: what was freed counts, what came before does not, children do; on a GPU, those of CUDA's first."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.metrics.memory import MemoryMeter, device_free_bytes

MIB = 1 << 20
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


def test_peak_remembers_what_was_freed():
    meter = MemoryMeter()
    before = meter.peak_bytes()
    block = np.ones(200 * MIB, dtype=np.uint8)
    del block
    assert 190 * MIB < meter.peak_bytes() - before < 260 * MIB


def test_peak_forgets_what_came_before():
    block = np.ones(300 * MIB, dtype=np.uint8)
    high = MemoryMeter().peak_bytes()
    del block
    assert MemoryMeter().peak_bytes() < high - 250 * MIB


def test_peak_counts_children():
    meter = MemoryMeter()
    before = meter.peak_bytes()
    code = "block = bytearray(b'x') * (100 << 20); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert meter.peak_bytes() - before > 95 * MIB
        child.communicate("\n")


@pytest.mark.skipif(not shutil.which("cc"), reason="builds the drivers of a machine that is not here with cc")
def test_a_gpu_is_the_one_that_cuda_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers of a machine with two, of which CUDA_VISIBLE_DEVICES left the second."""
    library = tmp_path / "drivers.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=_TWO_GPUS, text=True, check=True)
    drivers = ctypes.CDLL(str(library))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: drivers)
    assert device_free_bytes() == 70
