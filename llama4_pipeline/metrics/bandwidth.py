"""How fast this machine reads memory: what a roofline is drawn from."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

_SWEEP_BYTES = 1 << 29
_SWEEPS = 4


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
