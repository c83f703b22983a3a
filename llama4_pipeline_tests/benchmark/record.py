"""What the benchmark leaves: one JSON file for each machine."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from llama4_pipeline.machine import Machine
from llama4_pipeline.metrics.sweep import Sweep


class Run(BaseModel):
    """One engine, once, in a process of its own."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    title: str
    load_seconds: float
    sweep: Sweep
    providers: dict[str, int]
    model_bytes: int
    active_weight_bytes: int
    cache_read_bytes: dict[int, int]
    """Tokens of context -> bytes of cache that a step reads."""
    step_error: float | None = None
    """Of a step's logits, relative to those of the same token in a prompt; None where an engine has no steps."""


class Quality(BaseModel):
    """Divergence from float32 PyTorch on the same weights and tokens, nats per token."""

    model_config = ConfigDict(frozen=True)

    tokens: int
    kl_divergence: float
    kl_stderr: float
    top1_agreement: float


class Row(BaseModel):
    """One engine on one model. Figures are medians over the runs."""

    model_config = ConfigDict(frozen=True)

    key: str
    title: str
    unavailable: str | None = None
    runs: list[Run] = []
    quality: Quality | None = None

    def first(self, rounds: int) -> Self:
        """As if no more rounds had been measured."""
        return self.model_copy(update={"runs": self.runs[:rounds]})

    def median(self, figure: Callable[[Run], float | None]) -> float | None:
        """Of a figure over the runs; None where it was not measured."""
        found = [value for value in map(figure, self.runs) if value is not None]
        return statistics.median(found) if found else None

    def prefill(self, tokens: int) -> float | None:
        """Tokens per second."""
        ms = self.median(lambda run: run.sweep.prefill_ms.get(tokens))
        return ms and 1000 * tokens / ms

    def decode_ms(self, context: int) -> float | None:
        """Milliseconds of a step."""
        return self.median(lambda run: run.sweep.decode_ms.get(context))

    def decode(self, context: int) -> float | None:
        """Tokens per second."""
        ms = self.decode_ms(context)
        return ms and 1000 / ms

    def throughput(self, batch: int) -> float | None:
        """Tokens per second of all rows."""
        return self.median(lambda run: run.sweep.throughput.get(batch))

    def roofline(self, context: int, bandwidth: float) -> float | None:
        """Time to read weights and cache once over the time of a step."""
        ms = self.decode_ms(context)
        if ms is None:
            return None
        run = self.runs[0]
        return (run.active_weight_bytes + run.cache_read_bytes[context]) / bandwidth / (ms / 1000)

    def memory_ratio(self) -> float | None:
        """Peak over model file and cache."""
        return self.median(
            lambda run: run.sweep.peak_memory_bytes / (run.model_bytes + run.sweep.kv_cache_bytes)
        )


class ModelRecord(BaseModel):
    """The rows of one model."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    parameters: int
    bandwidth: float
    """Bytes that the machine reads in a second: the median of one measurement before each run."""
    rows: list[Row]

    def row(self, key: str) -> Row | None:
        """The row of an engine and precision, where it was measured."""
        return next((row for row in self.rows if row.key == key and row.runs), None)


class Record(BaseModel):
    """A whole benchmark."""

    model_config = ConfigDict(frozen=True)

    measured_on: str
    commit: str
    device: str
    threads: int
    rounds: int
    machine: Machine
    models: list[ModelRecord]

    def with_model(self, model: ModelRecord) -> Self:
        """With one more at the end."""
        return self.model_copy(update={"models": [*self.models, model]})


def read_record(file: Path) -> Record:
    """Reads what `write_record` wrote."""
    return Record.model_validate_json(file.read_text())


def write_record(record: Record, file: Path) -> None:
    """Writes the file, its directory too; whoever reads meanwhile sees the old or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(record.model_dump_json(indent=1) + "\n")
    new.replace(file)


def best(values: Sequence[float | None]) -> float | None:
    """The largest of what was measured."""
    return max((value for value in values if value is not None), default=None)
