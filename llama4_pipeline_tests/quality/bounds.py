"""What must hold of the rows of one model."""

from collections.abc import Iterable, Iterator, Sequence

from llama4_pipeline.metrics.tradeoff import FLOAT, MethodResult

DEFAULTS = {"int8": "rtn", "int4": "mixed"}
"""The method that the pipeline takes for a trained model of this size."""
LARGEST_LOSS = {("int8", "rtn"): 0.001, ("int4", "mixed"): 0.01, ("int4", "qat"): 0.005}
LARGEST_SHARE_OF_RTN = 0.5
LARGEST_SIZE_OF_RTN = 1.01


def faults(rows: Sequence[MethodResult]) -> list[str]:
    """The bounds that were missed, each with its figure."""
    found = {(row.precision, row.method): row for row in rows}
    return [
        *_losses(found.values()),
        *_beside_rounding(found.get(("int4", "rtn")), found.get(("int4", DEFAULTS["int4"]))),
        *_tasks(found.get(FLOAT), [row for key, row in found.items() if key in LARGEST_LOSS]),
    ]


def _losses(rows: Iterable[MethodResult]) -> Iterator[str]:
    for row in rows:
        bound = LARGEST_LOSS.get((row.precision, row.method))
        if bound is not None and row.loss > bound:
            yield f"{row.name}: perplexity {row.loss:+.3%}, at most {bound:+.1%} allowed"


def _beside_rounding(plain: MethodResult | None, default: MethodResult | None) -> Iterator[str]:
    """The default of 4 bits against plain rounding at the same size."""
    if plain is None or default is None:
        return
    if default.loss > LARGEST_SHARE_OF_RTN * plain.loss:
        yield (
            f"{default.name}: perplexity {default.loss:+.3%}, at most half of what round to nearest loses "
            f"({plain.loss:+.3%}) allowed"
        )
    if default.weight_bytes > LARGEST_SIZE_OF_RTN * plain.weight_bytes:
        yield (
            f"{default.name}: weights of {default.weight_bytes:,} bytes, round to nearest has "
            f"{plain.weight_bytes:,}: not the same size"
        )


def _tasks(original: MethodResult | None, rows: Sequence[MethodResult]) -> Iterator[str]:
    """Accuracy and ROUGE-L no more than one standard error below float32."""
    if original is None:
        return
    for row in rows:
        for name in ("accuracy", "rougeL"):
            before, after = getattr(original.quality, name), getattr(row.quality, name)
            error = getattr(original.quality, f"{name}_stderr")
            if after < before - error:
                yield f"{row.name}: {name} {after:.3f}, float32 has {before:.3f} with a standard error of {error:.3f}"
