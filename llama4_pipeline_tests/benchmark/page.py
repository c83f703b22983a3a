"""The page docs/benchmarks.md and the table in README.md, both from one record; the page with the ratios of others."""

from pathlib import Path

from llama4_pipeline.units import format_bytes, format_number
from llama4_pipeline_tests.benchmark.record import ModelRecord, Record, Row, read_record
from llama4_pipeline_tests.benchmark.targets import Target, targets

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
_GIB = 1 << 30

_HEAD = """# Benchmarks

{where}

Every engine runs the same random weights. Rows that are compared closely were opened {rounds} times in turns, each
time in a process of its own; figures are medians. A row that was opened once is held against the first round alone.
The first generation of a process is discarded. Prompts are random tokens, decoding is greedy, figures are tokens per
second as the caller of the Python API sees them. KL is the mean divergence from PyTorch in float32 in nats per token,
on the same {tokens} tokens. *Share* is the time to read the active weights and the cache once over the time of a decode
step after 16 tokens; the machine's bandwidth is measured before each run, and the median stands over each table.
*Memory* is the peak at batch 1 over model file and KV cache.
llama.cpp runs files that `llama4-pipeline gguf` wrote from the same checkpoint, every matrix in the format that is
named. Ratios are to the faster of its two kinds of attention where both were measured. Processes ask glibc for huge
pages. `torch.compile` compiles while it loads.

`make benchmark` measures again and writes this page from [the record]({record}), which holds every run.
"""

_PROMISED = """
## What is promised

On this machine, and as the records of others in docs/results have it. What misses is bold.

"""


def write_page(record: Record, file: Path, page: Path) -> None:
    """Writes the page of a record that lies at `file`, with the ratios of the records beside it."""
    tokens = next((r.quality.tokens for m in record.models for r in m.rows if r.quality), 0)
    parts = [
        _HEAD.format(
            where=where(record),
            rounds=record.rounds,
            tokens=tokens,
            record=file.relative_to(page.parent).as_posix(),
        )
    ]
    for model in record.models:
        parts.append(f"\n## {model.title}, {format_number(model.parameters / 1e9)} B parameters\n\n")
        parts.append(model_tables(model))
    others = [read_record(other) for other in sorted(file.parent.glob("*.json")) if other != file]
    parts.append(_PROMISED)
    parts.append(_promises(record, [other for other in others if other.device == record.device]))
    page.write_text("".join(parts))


def write_readme_table(record: Record, readme: Path) -> None:
    """Replaces what stands between the two marks.

    Raises:
        ValueError: the marks are not there.
    """
    tables = "".join(f"\n{model.title}:\n\n{speed_table(model)}" for model in record.models)
    replace_between(readme, BEGIN, END, f"{where(record)}\n{tables}")


def replace_between(file: Path, begin: str, end: str, text: str) -> None:
    """Replaces the lines between two marks of a file.

    Raises:
        ValueError: the marks are not there.
    """
    before, _, rest = file.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{file} has no {begin} ... {end}")
    file.write_text(f"{before}{begin}\n{text}{end}{after}")


def where(record: Record) -> str:
    """The machine in a sentence or two."""
    machine = record.machine
    place = f"{record.threads} threads" if record.device == "cpu" else str(machine.gpu)
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    return (
        f"Measured {record.measured_on} at {record.commit}: {machine.cpu} ({', '.join(machine.features)}), "
        f"{machine.cores} cores, {place}, {machine.memory_bytes / _GIB:.0f} GiB of memory; "
        f"{machine.system}; {libraries}."
    )


def speed_table(model: ModelRecord) -> str:
    """Tokens per second at batch 1, under the bandwidth that shares refer to."""
    head = ("", "prefill 128", "prefill 512", "decode after 16", "after 2,048", "KL", "share")
    lines = [f"{model.bandwidth / 1e9:.1f} GB/s read.\n\n", _cells(*head), "|---|" + "---:|" * 6 + "\n"]
    for row in model.rows:
        share = row.roofline(16, model.bandwidth)
        lines.append(
            _cells(
                row.title,
                *map(_number, (row.prefill(128), row.prefill(512), row.decode(16), row.decode(2048))),
                _divergence(row),
                "-" if share is None else f"{share:.0%}",
            )
        )
    return "".join(lines) + _left_out(model)


def model_tables(model: ModelRecord) -> str:
    """Speed at batch 1; then batches, loading and memory."""
    head = ("", "batch 1", "2", "4", "8", "load s", "first token ms", "file", "peak", "memory", "nodes")
    lines = [_cells(*head), "|---|" + "---:|" * 9 + "---|\n"]
    for row in model.rows:
        if not row.runs:
            continue
        run, ratio = row.runs[0], row.memory_ratio()
        lines.append(
            _cells(
                row.title,
                *(_number(row.throughput(batch)) for batch in (1, 2, 4, 8)),
                _number(row.median(lambda run: run.load_seconds)),
                _number(row.median(lambda run: run.sweep.prefill_ms.get(128))),
                format_bytes(run.model_bytes),
                format_bytes(max(run.sweep.peak_memory_bytes for run in row.runs)),
                f"{ratio:.2f}x" if ratio else "-",
                ", ".join(f"{name} {count or ''}".strip() for name, count in run.providers.items()),
            )
        )
    return speed_table(model) + "\n" + "".join(lines)


def _promises(record: Record, others: list[Record]) -> str:
    records = [record, *others]
    machines = [
        f"{', '.join((each.machine.cpu, *each.machine.features[-1:]))}, {each.measured_on} at {each.commit}"
        for each in records
    ]
    lines = [_cells("model", "ratio", "must be", *machines), "|---|---|---:|" + "---:|" * len(records) + "\n"]
    found = [{(target.model, target.what): target for target in targets(each)} for each in records]
    rows = {
        row: target for each in found for row, target in each.items()
    }  # what was measured elsewhere alone, too
    for (model, what), target in rows.items():
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}"
        lines.append(_cells(model, what, bound, *(_ratio(each.get((model, what))) for each in found)))
    return "".join(lines)


def _ratio(target: Target | None) -> str:
    number = _number(target and target.value)
    return f"**{number}**" if target and target.verdict == "missed" else number


def _left_out(model: ModelRecord) -> str:
    reasons = [f"{row.title}: {row.unavailable}" for row in model.rows if row.unavailable]
    return f"\nNot measured here: {'; '.join(reasons)}.\n" if reasons else ""


def _divergence(row: Row) -> str:
    if row.quality is None:
        return "-"
    return f"{row.quality.kl_divergence:.2g} ± {row.quality.kl_stderr:.1g}"


def _number(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"
