"""What the article that started this project claims, held against what was measured here.

The article, 'Llama 4 for ONNX: The Performance Battle Migration for Production', reports a 7B model on an A100.
Absolute figures of another machine prove nothing, so each claim is a ratio within one table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.report.rows import Row, is_baseline
from llama4_pipeline.units import format_bytes, format_number

HOLDS, FAILS, OPEN = "holds", "does not hold", "not measured"

Figure = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class ClaimResult:
    """One claim, the article's figures, ours, and whether the claim holds here."""

    claim: str
    article: str
    here: str
    verdict: str


@dataclass(frozen=True)
class _Claim:
    """`figure` of the row over that of the base row must be at most `bound`, or less where it is said so."""

    claim: str
    article: str
    base: Callable[[Measurement], bool]
    row: Callable[[Measurement], bool]
    figure: Figure
    text: Callable[[float], str]
    bound: float
    less: bool = False
    trained_weights_only: bool = False


def check_claims(rows: Sequence[Row]) -> list[ClaimResult]:
    """Holds every claim of the article against the rows of one model."""
    return [_check(claim, rows) for claim in _CLAIMS]


def _check(claim: _Claim, rows: Sequence[Row]) -> ClaimResult:
    base, row = _find(rows, claim.base), _find(rows, claim.row)
    if base is None or row is None:
        return ClaimResult(claim.claim, claim.article, "no such engine in this table", OPEN)
    for each in (base, row):
        if each.measurement.unavailable:
            return ClaimResult(
                claim.claim, claim.article, f"{each.name}: {each.measurement.unavailable}", OPEN
            )
    if claim.trained_weights_only and row.random_weights:
        return ClaimResult(claim.claim, claim.article, "random weights", OPEN)
    before, after = claim.figure(base.measurement), claim.figure(row.measurement)
    if before is None or after is None:
        return ClaimResult(claim.claim, claim.article, "not measured", OPEN)
    change = (
        f"{claim.text(before)} ({base.name}) to {claim.text(after)} ({row.name}), {_change(after / before)}"
    )
    ratio = after / before
    holds = ratio < claim.bound if claim.less else ratio <= claim.bound
    return ClaimResult(claim.claim, claim.article, change, HOLDS if holds else FAILS)


def _find(rows: Sequence[Row], wanted: Callable[[Measurement], bool]) -> Row | None:
    """The first wanted row that was measured, else the first wanted one."""
    found = [row for row in rows if wanted(row.measurement)]
    return next((row for row in found if not row.measurement.unavailable), next(iter(found), None))


def _change(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    if abs(percent) < 0.05:
        return "no change"
    return f"{format_number(abs(percent))}% {'more' if percent > 0 else 'less'}"


def _onnx(*precisions: str) -> Callable[[Measurement], bool]:
    return lambda each: each.engine.startswith("ONNX Runtime") and each.precision in precisions


def _tensorrt(measurement: Measurement) -> bool:
    return measurement.engine.startswith("TensorRT-LLM")


def _latency(measurement: Measurement) -> float | None:
    return None if measurement.decode_latency_ms is None else measurement.decode_latency_ms.p50


def _milliseconds(value: float) -> str:
    return f"{format_number(value)} ms"


_FLOAT = ("float32", "float16", "bfloat16")
_CLAIMS = (
    _Claim(
        "ONNX Runtime without quantization takes 30 to 50% less time per token than PyTorch eager",
        "118 to 82 ms, 31% less",
        base=is_baseline,
        row=_onnx(*_FLOAT),
        figure=_latency,
        text=_milliseconds,
        bound=0.70,
    ),
    _Claim(
        "ONNX Runtime INT8 is 2 to 3 times as fast as PyTorch eager",
        "118 to 47 ms, 60% less",
        base=is_baseline,
        row=_onnx("int8"),
        figure=_latency,
        text=_milliseconds,
        bound=0.50,
    ),
    _Claim(
        "TensorRT-LLM is faster than ONNX Runtime without quantization",
        "82 to 64 ms, 22% less",
        base=_onnx(*_FLOAT),
        row=_tensorrt,
        figure=_latency,
        text=_milliseconds,
        bound=1.0,
        less=True,
    ),
    _Claim(
        "ONNX Runtime without quantization needs less memory than PyTorch eager",
        "14.2 to 10.1 GB, 29% less",
        base=is_baseline,
        row=_onnx(*_FLOAT),
        figure=lambda each: each.peak_memory_bytes,
        text=format_bytes,
        bound=1.0,
        less=True,
    ),
    _Claim(
        "ONNX Runtime INT8 needs a quarter of PyTorch's memory",
        "14.2 to 3.6 GB, 75% less",
        base=is_baseline,
        row=_onnx("int8"),
        figure=lambda each: each.peak_memory_bytes,
        text=format_bytes,
        bound=0.26,
    ),
    _Claim(
        "The ONNX file is 30 to 50% smaller than the PyTorch checkpoint",
        "no figures given",
        base=is_baseline,
        row=_onnx(*_FLOAT),
        figure=lambda each: each.model_bytes,
        text=format_bytes,
        bound=0.70,
    ),
    _Claim(
        "INT8 takes a quarter of the size",
        "14 GB in FP16 to 3.5 GB, 75% less",
        base=is_baseline,
        row=_onnx("int8"),
        figure=lambda each: each.model_bytes,
        text=format_bytes,
        bound=0.27,  # a quarter and the scales
    ),
    _Claim(
        "INT8 raises perplexity by less than 1%",
        "no figures given",
        base=is_baseline,
        row=_onnx("int8"),
        figure=lambda each: each.perplexity,
        text=lambda value: f"{value:.3f}",
        bound=1.01,
        less=True,
        trained_weights_only=True,
    ),
)
