"""Runs one command in a process of its own under a hard limit of memory, and measures it as `/usr/bin/time -v` does."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llama4_pipeline.llama4.checkpoint import Checkpoint, write_shards, write_synthetic_checkpoint
from llama4_pipeline_tests.large.cases import Case

_PROGRAM = (sys.executable, "-m", "llama4_pipeline.cli")


@dataclass(frozen=True)
class Figures:
    """What a command took.

    Attributes:
        parameters: of the model.
        input_bytes: of the checkpoint's tensors.
        output_bytes: of all files written, or of the graph that was validated.
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
    """Runs the command, measures it, and deletes what was written.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="large-", dir=scratch) as root:
        checkpoint, out = Path(root) / case.model, Path(root) / "onnx"
        write_synthetic_checkpoint(checkpoint, case.config(), seed=0, dtype="bfloat16")
        parameters = Checkpoint.open(checkpoint).architecture.parameters()
        if case.shards:
            synthetic, checkpoint = checkpoint, Path(root) / "shards"
            write_shards(Checkpoint.open(synthetic), checkpoint)
        if case.verb == "validate":
            export = ["export", "--checkpoint", str(checkpoint), "--out", str(out), "--form", "fused"]
            subprocess.run([*_PROGRAM, *export], check=True)
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        start = time.monotonic()
        process = subprocess.Popen(
            [*_PROGRAM, *case.command(str(checkpoint), str(out))[1:]],
            preexec_fn=partial(_limit_memory, case.limit_bytes),
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


def _limit_memory(limit_bytes: int) -> None:
    """All private memory that is written to; mapped files, which the kernel can drop, are not in it."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
