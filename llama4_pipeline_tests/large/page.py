"""The page with the table."""

from pathlib import Path

from llama4_pipeline.units import format_bytes, format_number
from llama4_pipeline_tests.large.cases import BUSY_LOAD, GIB, LIMIT_BYTES, Case
from llama4_pipeline_tests.large.figures import Figures, LeftOut

_HEAD = f"""# Models larger than memory

Weights flow from the checkpoint into the final ONNX data file, read once, converted or quantized on the way, and
written once; the graph is made beside them on tensors without contents. What is resident is a few pieces, the largest
one expert, whatever the depth of the model.

    llama4-pipeline export --checkpoint DIR --out DIR --precision int4

`--no-weights` writes the graph alone; a directory with `config.json` is enough for it. `onnx.checker` and strict shape
inference look at every graph before it is written.

A whole run of the catalog's `7b`, benchmark and all: [seven-billion.md](seven-billion.md).

## Measured

Each command ran in a process of its own under a hard limit of {LIMIT_BYTES // GIB} GiB on private memory (RLIMIT_DATA);
the peak is the largest resident set, as `/usr/bin/time -v` tells it. Real dimensions (hidden 5120, 16 experts of 8192,
vocabulary 202048; Maverick: 128 experts), random bfloat16 weights, made on demand but where shards on disk are named.
INT4 and INT8 are by round to nearest. Time is that of the whole command, start of Python and trace included.

`mini, validated layer by layer` is `validate` of a float32 graph where both models as a whole (8.1 GB and the process)
do not fit into its limit of 3 GiB: PyTorch and the graph then run layer by layer, and every hidden state is compared.
The two rows behind it are `quantize --graph` of the same graph; gptq, which runs the model on its calibration tokens,
is allowed 8 GiB and 15 minutes.

Read and written are the bytes that pass between the process and the system (rchar and wchar of `/proc/PID/io`). Each
command reads, besides the checkpoint, Python with its libraries, and what it wrote once more, for the hash in
`manifest.json`.

Load is that of others: runnable processes per core when the command started. From {BUSY_LOAD} on the machine was busy:
times are upper bounds, and CPU time (of all cores together) tells what the work costs; on two free cores the stream
runs at up to twice the weights per CPU second.

"""

_COLUMNS = (
    "model",
    "parameters",
    "input",
    "output",
    "read",
    "written",
    "time",
    "CPU time",
    "peak memory",
    "weights/s",
    "weights per CPU second",
    "load",
    "measured",
)

_TAIL = """
The commands (a checkpoint directory here holds `config.json` and `synthetic_weights.json`, that is
`{{"seed": 0, "dtype": "bfloat16"}}` for random weights;
`scout-shards` is what `llama4-pipeline shards --checkpoint scout --out scout-shards` makes of one; `FLOAT` is the fused
float32 graph that `export` makes; `calibration.jsonl` holds 32,768 random token ids, 512 a line):

{commands}

`make large` measures again and writes this page. It takes about 30 GB of disk for a while, and 64 GB for all of Scout,
which is left out where they are not free; LARGE_SCRATCH=DIR chooses where.
"""


def write_page(page: Path, measured: list[tuple[Case, Figures | LeftOut]]) -> None:
    """Writes the page anew from what was measured so far."""
    commands = "\n".join(
        f"    {' '.join(case.command(case.checkpoint, 'GRAPH', 'FLOAT'))}" for case, _ in measured
    )
    page.parent.mkdir(exist_ok=True)
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(case, figures) for case, figures in measured)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    page.write_text(_HEAD + table + _TAIL.format(commands=commands))


def _cells(case: Case, figures: Figures | LeftOut) -> tuple[str, ...]:
    measured = f"{figures.date}, {figures.machine}"
    parameters = f"{format_number(figures.parameters / 1e9)} B"
    if isinstance(figures, LeftOut):
        needed, free = format_bytes(figures.needed_bytes), format_bytes(figures.free_bytes)
        left_out = f"left out: {needed} of disk needed, {free} free"
        return (case.name, parameters, left_out, *[""] * (len(_COLUMNS) - 4), measured)
    rates = ("", "")
    if case.streams:
        rates = (
            f"{format_number(figures.parameters / figures.seconds / 1e6)} M",
            f"{format_number(figures.parameters / figures.cpu_seconds / 1e6)} M",
        )
    return (
        case.name,
        parameters,
        format_bytes(figures.input_bytes) if case.streams else "",
        format_bytes(figures.output_bytes),
        format_bytes(figures.read_bytes),
        format_bytes(figures.written_bytes),
        f"{figures.seconds:.0f} s",
        f"{figures.cpu_seconds:.0f} s",
        f"{figures.peak_bytes / GIB:.2f} GiB",
        *rates,
        f"{figures.load:.1f}",
        measured,
    )
