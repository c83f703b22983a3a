"""Each engine in a process of its own, so that peaks of memory, thread pools and caches don't mix."""

import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread, Timer
from typing import IO, TYPE_CHECKING

import psutil
from pydantic import ValidationError

from llama4_pipeline.errors import CheckFailed
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.machine import describe_machine
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.preflight import graph_bytes, room
from llama4_pipeline.runtime.engines import available_cores, find_engine
from llama4_pipeline.units import format_bytes

if TYPE_CHECKING:
    from llama4_pipeline.metrics.bench import Facts

_logger = logging.getLogger(__name__)

_TAIL_LINES = 15
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_HUGE_PAGES = "glibc.malloc.hugetlb=1"  # some percent of a decode step; glibc reads it when a process starts
_TIME_OF_DAY = re.compile(r"^\d\d:\d\d:\d\d ")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure; the fields are those of `bench`."""

    engine: str
    model: str
    graph: Path | None = None
    checkpoint: Path | str | None = None
    prompt_tokens: int = 128
    new_tokens: int = 64
    batch: tuple[int, ...] = (1,)
    repeats: int = 3
    threads: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def command(self) -> list[str]:
        """The words of `llama4-pipeline bench` that measure this."""
        words = [sys.executable, "-m", "llama4_pipeline.cli", "bench", "--json"]
        words += [
            "--engine",
            self.engine,
            "--model",
            self.model,
            "--device",
            self.device,
        ]
        words += ["--dtype", self.dtype] if find_engine(self.engine).runs == "checkpoint" else []
        words += ["--graph", str(self.graph)] if self.graph else ["--checkpoint", str(self.checkpoint)]
        words += ["--prompt-tokens", str(self.prompt_tokens), "--new-tokens", str(self.new_tokens)]
        words += ["--batch", ",".join(map(str, self.batch)), "--repeats", str(self.repeats)]
        return words + (["--threads", str(self.threads)] if self.threads else [])

    def unavailable(self, reason: str, facts: "Facts | None" = None) -> Measurement:
        """The row of an engine that cannot run here; `facts` of the model that it would have run, if they are known."""
        return Measurement(
            model=self.model,
            engine=facts.title if facts else find_engine(self.engine).title,
            precision=facts.precision if facts else self.dtype,
            device=self.device,
            threads=self.threads or available_cores(),
            machine=describe_machine(),
            unavailable=reason,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            repeats=self.repeats,
        )


def measure_isolated(request: BenchRequest) -> Measurement:
    """Runs one `bench` in a process of its own; its log lines pass through to ours.

    Returns:
        The measurement; one with `unavailable` where the engine's library or device is missing, or its weights do
        not fit into memory.

    Raises:
        CheckFailed: the process died or printed no measurement; with the end of what it said.
    """
    if missing := find_engine(request.engine).missing(request.device):
        _logger.warning("%s is left out: %s", request.engine, missing)
        return request.unavailable(missing, _facts(request) if request.graph else None)
    if (weights := _weights_in_memory(request)) > (free := room(Path.cwd()).memory_bytes):
        facts = _facts(request)
        short = f"its weights take {format_bytes(weights)}, {format_bytes(free)} of memory are free"
        _logger.warning("%s is left out: %s", facts.title, short)
        return request.unavailable(short, facts).model_copy(update={"short_of_memory_bytes": weights})
    what = f"bench of {request.engine} on {request.model}"
    line = last_line(request.command(), what)
    try:
        return Measurement.model_validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise CheckFailed(f"{what} printed no measurement but {line!r}") from error


def last_line(command: Sequence[str], what: str, limit_seconds: float | None = None) -> str:
    """Runs a command, its log lines passing through to ours, and returns the last line of its standard output.

    Where glibc serves its memory, it asks the kernel for huge pages.

    Args:
        command: the program and its words.
        what: names the work in the message.
        limit_seconds: when it is killed; None is never.

    Raises:
        CheckFailed: the process died, printed nothing or took too long; with the end of what it said.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(),
        preexec_fn=partial(_end_with, os.getpid()),
    )
    assert process.stdout is not None and process.stderr is not None
    said: deque[str] = deque(maxlen=_TAIL_LINES)
    listener = Thread(target=_relay, args=(process.stderr, said))
    listener.start()
    late = Event()

    def end() -> None:
        late.set()
        _kill_family(process.pid)

    alarm = Timer(limit_seconds or 0, end)
    if limit_seconds:
        alarm.start()
    try:
        output = process.stdout.read().splitlines()
        status = process.wait()
    except BaseException:
        _kill_family(process.pid)
        raise
    finally:
        alarm.cancel()
        listener.join()
    tail = " | ".join(said) or "it said nothing"
    if late.is_set():
        raise CheckFailed(f"{what} took more than {limit_seconds:.0f} s")
    if status:
        how = (
            f"ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"
        )
        raise CheckFailed(f"{what} {how}: {tail}")
    if not output:
        raise CheckFailed(f"{what} printed no measurement: {tail}")
    return output[-1]


def _kill_family(pid: int) -> None:
    """Kills a process with all that it started: any of them may hold its output open, which is read to its end."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _end_with(parent: int) -> None:
    """Has the kernel kill this process with the one that started it: nobody may measure beside a leftover of it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def _environment() -> dict[str, str]:
    """Ours, with huge pages, and with modules from where ours come, not from the directory that the user is in."""
    tunables = [value for value in (os.environ.get("GLIBC_TUNABLES"), _HUGE_PAGES) if value]
    modules = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    return os.environ | modules | {"GLIBC_TUNABLES": ":".join(tunables)}


def _facts(request: BenchRequest) -> "Facts":
    from llama4_pipeline.metrics.bench import engine_facts

    return engine_facts(request.engine, request.graph or Path(str(request.checkpoint)), request.dtype)


def _weights_in_memory(request: BenchRequest) -> int:
    """Bytes of main memory that the weights take; 0 where they lie on a GPU, or nothing says how many they are."""
    if request.device != "cpu":
        return 0
    if request.graph:
        return graph_bytes(request.graph)
    if request.checkpoint and (Path(request.checkpoint) / "config.json").is_file():
        parameters = Checkpoint.open(request.checkpoint, with_weights=False).architecture.parameters()
        return parameters * (4 if request.dtype == "float32" else 2)
    return 0


def _relay(stream: IO[str], said: deque[str]) -> None:
    for line in stream:
        said.append(line.rstrip())
        _logger.info("%s", _TIME_OF_DAY.sub("", line.rstrip()))  # it gets the time of this process's log
