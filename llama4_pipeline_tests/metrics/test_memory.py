"""Peaks of memory: what was freed counts, what came before does not, children do."""

import subprocess
import sys

import numpy as np
import pytest

from llama4_pipeline.metrics.memory import MemoryMeter

MIB = 1 << 20


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


@pytest.mark.parametrize("through", [[], ["sh", "-c", '"$0" "$@"; true']], ids=["child", "grandchild"])
def test_peak_counts_children_and_theirs(through):
    meter = MemoryMeter()
    before = meter.peak_bytes()
    code = "block = bytearray(b'x') * (100 << 20); print('ready', flush=True); input()"
    with subprocess.Popen(
        [*through, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert meter.peak_bytes() - before > 95 * MIB
        child.communicate("\n")
