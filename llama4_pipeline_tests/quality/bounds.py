"""What must hold of the rows of one model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from llama4_pipeline.metrics.method_result import FLOAT, MethodResult

DEFAULTS = {"int8": "k_quant", "int4": "mixed"}
"""The method that the pipeline takes for a trained model of this size."""
LARGEST_LOSS = {("int8", "k_quant"): 0.001, ("int4", "mixed"): 0.01, ("int4", "qat"): 0.005}
LARGEST_SHARE_OF_RTN = 0.5
LARGEST_SIZE_OF_RTN = 1.01
LARGEST_TIME_OF_RTN = 1.25
"""All methods write the same operators, so nothing but the spread of a short measurement should show: two of one graph,
minutes apart on two busy cores, differed by up to a fifth."""
SHOWN_FOR_THEIR_LIMITS = ("qdq-dynamic", "qdq-static")
"""ONNX Runtime's own quantizers, which leave the experts in float32; not held against rtn."""
_NEEDED = (FLOAT, ("int4", "rtn"), *LARGEST_LOSS)


def faults(rows: Sequence[MethodResult]) -> list[str]:
    """The bounds that were missed, each with its figure, or the rows that they need and nobody measured."""
    found = {(row.precision, row.method): row for row in rows}
    absent = [
        f"{precision} {method}: not measured"
        for precision, method in _NEEDED
        if (precision, method) not in found
    ]
    return absent or [
        *_losses(found.values()),
        *_half_of_rounding(found["int4", "rtn"], found["int4", DEFAULTS["int4"]]),
        *_overheads(found),
        *_tasks(found[FLOAT], [found[key] for key in LARGEST_LOSS]),
    ]


def _losses(rows: Iterable[MethodResult]) -> Iterator[str]:
    for row in rows:
        bound = LARGEST_LOSS.get((row.precision, row.method))
        if bound is not None and row.loss > bound:
            yield f"{row.name}: perplexity {row.loss:+.3%}, at most {bound:+.1%} allowed"


def _half_of_rounding(plain: MethodResult, default: MethodResult) -> Iterator[str]:
    """The default of 4 bits against plain rounding."""
    if default.loss > LARGEST_SHARE_OF_RTN * plain.loss:
        yield (
            f"{default.name}: perplexity {default.loss:+.3%}, at most half of what round to nearest loses "
            f"({plain.loss:+.3%}) allowed"
        )


def _overheads(found: Mapping[tuple[str, str], MethodResult]) -> Iterator[str]:
    """Size and speed of every method against plain rounding to the same precision."""
    for (precision, method), row in found.items():
        plain = found.get((precision, "rtn"))
        if plain is None or method in SHOWN_FOR_THEIR_LIMITS:
            continue
        if row.weight_bytes > LARGEST_SIZE_OF_RTN * plain.weight_bytes:
            yield (
                f"{row.name}: weights of {row.weight_bytes:,} bytes, round to nearest has "
                f"{plain.weight_bytes:,}: not the same size"
            )
        if row.decode_latency_ms > LARGEST_TIME_OF_RTN * plain.decode_latency_ms:
            yield (
                f"{row.name}: {row.decode_latency_ms:.3g} ms/token, round to nearest takes "
                f"{plain.decode_latency_ms:.3g}: at most {LARGEST_TIME_OF_RTN - 1:.0%} more allowed"
            )


def _tasks(original: MethodResult, rows: Sequence[MethodResult]) -> Iterator[str]:
    """Accuracy and ROUGE-L no more than one standard error below float32."""
    for row in rows:
        for name in ("accuracy", "rougeL"):
            before, after = getattr(original.quality, name), getattr(row.quality, name)
            error = getattr(original.quality, f"{name}_stderr")
            if after < before - error:
                yield f"{row.name}: {name} {after:.3f}, float32 has {before:.3f} with a standard error of {error:.3f}"
