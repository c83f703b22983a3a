"""The page with the table."""

import datetime
from pathlib import Path

from llama4_pipeline.metrics.machine import describe_machine
from llama4_pipeline.units import format_bytes, format_number
from llama4_pipeline_tests.large.cases import GIB, LIMIT_BYTES, Case
from llama4_pipeline_tests.large.run import Figures

_HEAD = """# Models larger than memory

Weights flow from the checkpoint into the final ONNX data file, read once, converted or quantized on the way, and
written once; the graph is made beside them on tensors without contents. What is resident is a few pieces, the largest
one expert, whatever the depth of the model.

    llama4-pipeline export --checkpoint DIR --out DIR --precision int4

`--no-weights` writes the graph alone; a directory with `config.json` is enough for it. `onnx.checker` and strict shape
inference look at every graph before it is written.

A whole run of the catalog's `7b`, benchmark and all: [seven-billion.md](seven-billion.md).

## Measured

{date}, {cpu}, {cores} cores, {memory:.0f} GiB. Each command ran in a process of its own under a hard limit of
{limit} GiB on private memory (RLIMIT_DATA); the peak is the largest resident set, as `/usr/bin/time -v` tells it. Real
dimensions (hidden 5120, 16 experts of 8192, vocabulary 202048; Maverick: 128 experts), random bfloat16 weights, made on
demand but where shards on disk are named. INT4 and INT8 are by round to nearest. Time is that of the
whole command, start of Python and trace included.

The last row is `validate` of a float32 graph where both models as a whole (8.6 GB and the process) do not fit into its
limit of 3 GiB: PyTorch and the graph then run layer by layer, and every hidden state is compared.

| model | parameters | input | output | time | CPU time | peak memory | weights/s | weights per CPU second |
|---|---|---|---|---|---|---|---|---|
"""

_TAIL = """
{busy}

The commands (a checkpoint directory here holds `config.json` and `synthetic_weights.json`, nothing else):

{commands}

`make large` measures again and writes this page (about 30 GB of disk for a while; LARGE_SCRATCH=DIR chooses where).
"""

_BUSY = (
    "**The machine was busy**: {load:.1f} other runnable processes per core on average when the commands started.\n"
    "Times are upper bounds; CPU time (of both cores together) tells what the work costs: on two free cores the\n"
    "stream runs at up to twice the weights per CPU second."
)
_IDLE = "The machine was otherwise idle."


def write_page(page: Path, measured: list[tuple[Case, Figures]]) -> None:
    """Writes the page anew from what was measured so far."""
    machine = describe_machine()
    head = _HEAD.format(
        date=datetime.date.today().isoformat(),
        cpu=machine.cpu,
        cores=machine.cores,
        memory=machine.memory_bytes / GIB,
        limit=LIMIT_BYTES // GIB,
    )
    load = sum(figures.load for _, figures in measured) / len(measured)
    tail = _TAIL.format(
        busy=_BUSY.format(load=load) if load > 0.5 else _IDLE,
        commands="\n".join(f"    {' '.join(case.command(case.model, 'GRAPH'))}" for case, _ in measured),
    )
    page.parent.mkdir(exist_ok=True)
    page.write_text(head + "".join(_row(case, figures) for case, figures in measured) + tail)


def _row(case: Case, figures: Figures) -> str:
    streams = case.verb == "export" and "--no-weights" not in case.options
    rates = ("", "")
    if streams:
        rates = (
            f"{format_number(figures.parameters / figures.seconds / 1e6)} M",
            f"{format_number(figures.parameters / figures.cpu_seconds / 1e6)} M",
        )
    cells = (
        case.name,
        f"{format_number(figures.parameters / 1e9)} B",
        format_bytes(figures.input_bytes) if streams else "",
        format_bytes(figures.output_bytes),
        f"{figures.seconds:.0f} s",
        f"{figures.cpu_seconds:.0f} s",
        f"{figures.peak_bytes / GIB:.2f} GiB",
        *rates,
    )
    return f"| {' | '.join(cells)} |\n"
