"""The benchmark table as files: Parquet and CSV for programs, Markdown for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llama4_pipeline.metrics.measurement import Measurement, Percentiles
from llama4_pipeline.report.rows import RANDOM_WEIGHTS, Column, Row, table_rows, tables

_SETTINGS = (
    "model", "engine", "precision", "device", "threads", "prompt_tokens", "new_tokens", "repeats",
)  # fmt: skip
_FIGURES = (
    "time_to_first_token_ms", "prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds",
    "peak_memory_bytes", "kv_cache_bytes", "model_bytes", "active_bytes_per_token", "roofline_share",
    "kl_divergence", "kl_stderr", "top1_agreement", "top1_stderr", "expert_change_share",
)  # fmt: skip
_TRAINED_FIGURES = (
    "perplexity", "perplexity_stderr", "rouge1", "rouge1_stderr", "rouge2", "rouge2_stderr", "rougeL", "rougeL_stderr",
    "accuracy", "accuracy_stderr",
)  # fmt: skip
_NOTHING = "-"


def write_tables(measurements: Sequence[Measurement], out: Path, *, random_weights: bool = False) -> None:
    """Writes benchmark.parquet, benchmark.csv and benchmark.md.

    Args:
        measurements, random_weights: as in `benchmark_table`.
        out: a directory that exists.
    """
    table = benchmark_table(measurements, random_weights=random_weights)
    table.to_parquet(out / "benchmark.parquet", index=False)
    table.to_csv(out / "benchmark.csv", index=False)
    text = markdown_tables(measurements, random_weights=random_weights)
    (out / "benchmark.md").write_text(text, encoding="utf-8")


def benchmark_table(measurements: Sequence[Measurement], *, random_weights: bool = False) -> pd.DataFrame:
    """Builds the table for programs: units in the columns' names, NaN where nothing was measured.

    Args:
        measurements: one for each row, of one model, in the order of the rows.
        random_weights: whether the weights of the model are random. Perplexity, ROUGE and accuracy would mean nothing
            then: they are left out, and the column `weights` says why.
    """
    batches = sorted({batch for each in measurements for batch in each.throughput})
    rows = table_rows(measurements, random_weights=random_weights)
    table = pd.DataFrame([_texts(row) | _figures(row, batches) for row in rows])
    return table.astype(dict.fromkeys(_figures(rows[0], batches), "float64"))


def markdown_tables(measurements: Sequence[Measurement], *, random_weights: bool = False) -> str:
    """Writes the table for people in narrow parts: speed and memory, latency, throughput, size and quality.

    Args:
        measurements, random_weights: as in `benchmark_table`.

    Returns:
        GitHub Markdown that reads well in a terminal; reasons of rows without figures stand at the end.
    """
    rows = table_rows(measurements, random_weights=random_weights)
    parts = [f"{table.title}. {table.note}\n\n{_markdown(rows, table.columns)}" for table in tables(rows)]
    reasons = [f"- {row.name}: {row.measurement.unavailable}" for row in rows if row.measurement.unavailable]
    if reasons:
        parts.append("\n".join(["Not measured here:", "", *reasons]))
    return "\n\n".join(parts) + "\n"


def _texts(row: Row) -> dict[str, Any]:
    measured = row.measurement
    return {
        **{name: getattr(measured, name) for name in _SETTINGS},
        "weights": RANDOM_WEIGHTS if row.random_weights else "trained",
        "portability": row.portability,
        "providers": json.dumps(measured.providers),
        "unavailable": measured.unavailable,
        "machine": measured.machine.model_dump_json(),
    }


def _figures(row: Row, batches: Sequence[int]) -> dict[str, float | None]:
    measured = row.measurement
    return {
        **_percentiles("latency", measured.decode_latency_ms),
        **_percentiles("sampling_latency", measured.sampling_latency_ms),
        "speedup_over_eager": row.speedup,
        **{name: getattr(measured, name) for name in _FIGURES},
        **{f"tokens_per_second_batch_{batch}": measured.throughput.get(batch) for batch in batches},
        **{name: None if row.random_weights else getattr(measured, name) for name in _TRAINED_FIGURES},
    }


def _percentiles(name: str, figures: Percentiles | None) -> dict[str, float | None]:
    return {
        f"{name}_{percentile}_ms": None if figures is None else getattr(figures, percentile)
        for percentile in ("p50", "p90", "p99")
    }


def _markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    cells = [["engine", *(column.head for column in columns)]]
    cells += [[row.name, *(column.cell(row) or _NOTHING for column in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [True, *(column.wordy for column in columns)]
    lines = [
        [
            text.ljust(width) if at_left else text.rjust(width)
            for text, width, at_left in zip(line, widths, left, strict=True)
        ]
        for line in cells
    ]
    rule = [
        "-" * width if at_left else "-" * (width - 1) + ":"
        for width, at_left in zip(widths, left, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
