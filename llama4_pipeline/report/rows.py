"""What the benchmark table says of each engine, for people: rows, columns, and how each cell reads.

The Markdown table and the page show the same columns, which are declared here once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.units import format_bytes, format_number

RANDOM_WEIGHTS = "random weights"

_PORTABILITY = {
    "PyTorch": "Low (framework-dependent)",
    "ONNX Runtime": "High (cross-platform)",
    "llama.cpp": "High (cross-platform)",
    "TensorRT-LLM": "Low (NVIDIA only)",
}


@dataclass(frozen=True)
class Row:
    """A measurement among the others of its table.

    Attributes:
        name: What tells it from the others: the engine, and its precision where several share it.
        measurement: The figures.
        speedup: Greedy p50 time per token of PyTorch eager over this engine's; None without both.
        random_weights: Whether the model's weights are random, so that its quality means nothing.
    """

    name: str
    measurement: Measurement
    speedup: float | None
    random_weights: bool

    @property
    def portability(self) -> str | None:
        """Where else the same files run, in the words of the article's table."""
        engine = self.measurement.engine
        return next((text for name, text in _PORTABILITY.items() if engine.startswith(name)), None)


@dataclass(frozen=True)
class Column:
    """One column: its head, a row's cell (None where nothing was measured), what it means, words or figures."""

    head: str
    cell: Callable[[Row], str | None]
    meaning: str
    wordy: bool = False


@dataclass(frozen=True)
class Table:
    """A part of the benchmark table that fits a terminal."""

    title: str
    note: str
    columns: Sequence[Column]


def is_baseline(measurement: Measurement) -> bool:
    """Whether this is PyTorch eager, in any precision; the first of a table is what the others are compared with."""
    return measurement.engine.startswith("PyTorch eager")


def table_rows(measurements: Sequence[Measurement], *, random_weights: bool = False) -> list[Row]:
    """Names the measurements of one model and compares each with PyTorch eager.

    Args:
        measurements: one for each row, in the order of the rows.
        random_weights: whether the weights of the model are random.
    """
    engines = [each.engine for each in measurements]
    return [
        Row(
            each.engine if engines.count(each.engine) == 1 else f"{each.engine} {each.precision}",
            each,
            _speedup(each, measurements),
            random_weights,
        )
        for each in measurements
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The benchmark table in four narrow parts; batch sizes are those that were measured."""
    batches = sorted({batch for row in rows for batch in row.measurement.throughput})
    by_batch = [
        Column(f"batch {batch}", _throughput(batch), f"Generated tokens per second, {batch} rows together.")
        for batch in batches
    ]
    return [
        Table("Speed and memory", "Batch 1, greedy decoding, each engine in a process of its own.", _SPEED),
        Table("Latency", "Time per token when sampling, and what passes before the first token.", _LATENCY),
        Table("Throughput", "Tokens per second, all rows of a batch together.", [*by_batch, *_THROUGHPUT]),
        Table("Size and quality", "What the smaller model costs on held-out text and tasks.", _QUALITY),
    ]


def _speedup(measurement: Measurement, others: Sequence[Measurement]) -> float | None:
    baseline = next(filter(is_baseline, others), None)
    if baseline is None or baseline.decode_latency_ms is None or measurement.decode_latency_ms is None:
        return None
    return baseline.decode_latency_ms.p50 / measurement.decode_latency_ms.p50


def _percentile(field: str, percentile: str) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        latency = getattr(row.measurement, field)
        return None if latency is None else format_number(getattr(latency, percentile))

    return cell


def _number(field: str) -> Callable[[Row], str | None]:
    return _formatted(field, format_number)


def _bytes(field: str) -> Callable[[Row], str | None]:
    return _formatted(field, format_bytes)


def _percent(field: str) -> Callable[[Row], str | None]:
    return _formatted(field, lambda share: f"{100 * share:.1f}%")


def _formatted(field: str, text: Callable[[float], str]) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        value = getattr(row.measurement, field)
        return None if value is None else text(value)

    return cell


def _trained(cell: Callable[[Row], str | None]) -> Callable[[Row], str | None]:
    def guarded(row: Row) -> str | None:
        if row.random_weights and row.measurement.unavailable is None:
            return RANDOM_WEIGHTS
        return cell(row)

    return guarded


def _throughput(batch: int) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        speed = row.measurement.throughput.get(batch)
        return None if speed is None else format_number(speed)

    return cell


def _times_eager(row: Row) -> str | None:
    return None if row.speedup is None else f"{format_number(row.speedup)}x"


def _perplexity(row: Row) -> str | None:
    measured = row.measurement
    if measured.perplexity is None:
        return None
    text = f"{measured.perplexity:.3f}"
    return text if measured.perplexity_stderr is None else f"{text} ± {measured.perplexity_stderr:.3f}"


def _rouge(row: Row) -> str | None:
    measured = row.measurement
    scores = (measured.rouge1, measured.rouge2, measured.rougeL)
    if all(score is None for score in scores):
        return None
    return " / ".join("-" if score is None else f"{score:.3f}" for score in scores)


def _providers(row: Row) -> str | None:
    short = {
        name.removesuffix("ExecutionProvider"): nodes for name, nodes in row.measurement.providers.items()
    }
    return ", ".join(f"{name} {nodes}" if nodes else name for name, nodes in short.items()) or None


_SPEED = (
    Column(
        "ms/token p50",
        _percentile("decode_latency_ms", "p50"),
        "Time per token; half of the tokens are faster.",
    ),
    Column("p90", _percentile("decode_latency_ms", "p90"), "Nine of ten tokens are faster."),
    Column("p99", _percentile("decode_latency_ms", "p99"), "99 of 100 tokens are faster."),
    Column("tok/s", _number("decode_tokens_per_second"), "Tokens generated per second."),
    Column("vs eager", _times_eager, "PyTorch eager's p50 time per token over this engine's."),
    Column(
        "peak memory",
        _bytes("peak_memory_bytes"),
        "Most memory the engine's process held, KV cache included.",
    ),
    Column("portability", lambda row: row.portability, "Where else the same files run.", wordy=True),
)
_LATENCY = (
    Column(
        "sampling p50",
        _percentile("sampling_latency_ms", "p50"),
        "ms per token with temperature, top-k and top-p.",
    ),
    Column("p90", _percentile("sampling_latency_ms", "p90"), "Nine of ten tokens are faster."),
    Column("p99", _percentile("sampling_latency_ms", "p99"), "99 of 100 tokens are faster."),
    Column("first token ms", _number("time_to_first_token_ms"), "Prompt read and first token chosen."),
    Column("load s", _number("load_seconds"), "From nothing to ready."),
    Column("nodes run by", _providers, "Execution providers and how many nodes each ran.", wordy=True),
)
_THROUGHPUT = (
    Column(
        "prefill tok/s", _number("prefill_tokens_per_second"), "Prompt tokens read per second at batch 1."
    ),
    Column(
        "roofline",
        _percent("roofline_share"),
        "Share of the speed that reading weights and cache once allows.",
    ),
    Column("KV cache", _bytes("kv_cache_bytes"), "Allocated for keys and values at batch 1."),
)
_QUALITY = (
    Column("model file", _bytes("model_bytes"), "Weights as stored."),
    Column("perplexity", _trained(_perplexity), "On held-out text, with its standard error."),
    Column("KL div.", _number("kl_divergence"), "From PyTorch float32 on the same text, nats per token."),
    Column("top-1", _percent("top1_agreement"), "Positions where PyTorch's first choice is this engine's."),
    Column(
        "rerouted",
        _percent("expert_change_share"),
        "Choices of experts, by token and layer, that are not PyTorch's.",
    ),
    Column(
        "ROUGE-1 / 2 / L", _trained(_rouge), "Likeness to the reference summaries, F-measure from 0 to 1."
    ),
    Column("accuracy", _trained(_percent("accuracy")), "Share of classifications that are right."),
)
