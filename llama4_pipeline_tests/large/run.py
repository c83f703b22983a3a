"""Runs one export in a process of its own under a hard limit of memory, and measures it as `/usr/bin/time -v` does."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline_tests.large.cases import LIMIT_BYTES, Case


@dataclass(frozen=True)
class Figures:
    """What an export took.

    Attributes:
        parameters: of the model.
        input_bytes: of the checkpoint's tensors.
        output_bytes: of all files written.
        seconds: wall time of the whole command.
        cpu_seconds: of all its threads.
        peak_bytes: largest resident set (ru_maxrss).
        load: runnable processes per core when it started, its own not among them.
    """

    parameters: int
    input_bytes: int
    output_bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    load: float


def run_case(case: Case, scratch: Path) -> Figures:
    """Exports, measures, and deletes what was written.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="large-", dir=scratch) as root:
        checkpoint, out = Path(root) / case.model, Path(root) / "onnx"
        write_synthetic_checkpoint(checkpoint, case.config(), seed=0, dtype="bfloat16")
        parameters = Checkpoint.open(checkpoint).architecture.parameters()
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "llama4_pipeline.cli", *case.command(str(checkpoint), str(out))[1:]],
            preexec_fn=_limit_memory,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if status:
            raise RuntimeError(f"{case.name}: ended with status {os.waitstatus_to_exitcode(status)}")
        written = sum(file.stat().st_size for file in out.iterdir())
        shutil.rmtree(out)
        return Figures(
            parameters=parameters,
            input_bytes=2 * parameters,
            output_bytes=written,
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            load=load,
        )


def _limit_memory() -> None:
    """All private memory that is written to; the mapped files of others are not ours to limit."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
