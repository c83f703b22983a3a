"""Runs one command in a process of its own under a hard limit of memory, and measures it as `/usr/bin/time -v` does."""

import datetime
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_shards, write_synthetic_checkpoint
from llama4_pipeline.machine import describe_machine
from llama4_pipeline_tests.large.cases import CALIBRATION_FILE, GIB, Case
from llama4_pipeline_tests.large.figures import Figures, LeftOut

_PROGRAM = (sys.executable, "-m", "llama4_pipeline.cli")


def run_case(case: Case, scratch: Path) -> Figures | LeftOut:
    """Runs the command, measures it, and deletes what was written; leaves it out where the disk is too small.

    Raises:
        RuntimeError: the command failed.
    """
    date, machine, free = datetime.date.today().isoformat(), _machine(), shutil.disk_usage(scratch).free
    if free < case.free_bytes:
        parameters = Architecture.from_config(case.config()).parameters()
        return LeftOut(parameters, case.free_bytes, free, date, machine)
    with tempfile.TemporaryDirectory(prefix="large-", dir=scratch.resolve()) as root:
        checkpoint, out, float_graph = (Path(root) / name for name in (case.model, "onnx", "float"))
        write_synthetic_checkpoint(checkpoint, case.config(), seed=0, dtype="bfloat16")
        source = Checkpoint.open(checkpoint)
        if case.shards:
            checkpoint = Path(root) / case.checkpoint
            write_shards(source, checkpoint)
        if case.verb != "export":
            made = out if case.verb == "validate" else float_graph
            export = ["export", "--checkpoint", str(checkpoint), "--out", str(made), "--form", "fused"]
            subprocess.run([*_PROGRAM, *export], check=True)
        if case.calibration_tokens:
            vocabulary = source.architecture.vocab_size
            _write_token_ids(Path(root) / CALIBRATION_FILE, case.calibration_tokens, vocabulary)
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        start = time.monotonic()
        process = subprocess.Popen(
            [*_PROGRAM, *case.command(str(checkpoint), str(out), str(float_graph))[1:]],
            cwd=root,
            preexec_fn=partial(_limit_memory, case.limit_bytes),
        )
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - start
        passed = _bytes_passed(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{case.name}: ended with status {os.waitstatus_to_exitcode(status)}")
        written = sum(file.stat().st_size for file in out.iterdir())
        shutil.rmtree(out)
        return Figures(
            parameters=source.architecture.parameters(),
            input_bytes=source.weight_bytes,
            output_bytes=written,
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            read_bytes=passed["rchar"],
            written_bytes=passed["wchar"],
            load=load,
            date=date,
            machine=machine,
        )


def _write_token_ids(file: Path, tokens: int, vocabulary: int) -> None:
    """Random token ids, 512 a line."""
    ids = np.random.default_rng(0).integers(vocabulary, size=(tokens // 512, 512))
    file.write_text("".join(json.dumps({"input_ids": line}) + "\n" for line in ids.tolist()))


def _bytes_passed(pid: int) -> dict[str, int]:
    """The counters of a process that ended and was not waited for yet."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(count) for name, _, count in (line.partition(": ") for line in lines)}


def _machine() -> str:
    machine = describe_machine()
    return f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / GIB:.0f} GiB"


def _limit_memory(limit_bytes: int) -> None:
    """All private memory that is written to; mapped files, which the kernel can drop, are not in it."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
