"""The page with the tables."""

import datetime
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from llama4_pipeline.catalog import find_model, load_catalog
from llama4_pipeline.graph.quantize import FALLBACK
from llama4_pipeline.machine import describe_machine
from llama4_pipeline.methods import METHODS, MINIMUM_TOKENS
from llama4_pipeline.metrics.method_result import MethodResult
from llama4_pipeline.report.plots import to_png
from llama4_pipeline.report.tradeoff import draw_tradeoff
from llama4_pipeline.units import format_bytes, format_number
from llama4_pipeline_tests.quality.bounds import (
    DEFAULTS,
    LARGEST_LOSS,
    LARGEST_SHARE_OF_RTN,
    LARGEST_SIZE_OF_RTN,
    LARGEST_TIME_OF_RTN,
    SHOWN_FOR_THEIR_LIMITS,
)
from llama4_pipeline_tests.quality.measure import CATALOG, Compared
from llama4_pipeline_tests.quality.sizes import LARGEST_SHARE, MODEL

_HEADS = (
    "precision", "method", "size", "ms/token", "perplexity", "loss", "KL, nats", "top-1", "rerouted", "accuracy",
    "ROUGE-L", "seconds",
)  # fmt: skip


_HEAD = """# What quantization costs

`make quality` measured this on {date}, {cpu}, {cores} cores, {memory:.0f} GiB, with ONNX Runtime {onnxruntime};
it exits 1 where a bound below is missed. It trains what is not yet trained in the pipeline's store, quantizes each
model by every method, and judges each graph on held-out text and the two tasks, beside PyTorch float32. `tiny`
is trained anew in each store: what README.md says of it, trained elsewhere, may differ a little.

- **size**: `model.onnx` and its data, which in so small a model is in good part padding to pages.
- **ms/token**: time of a decoded token at batch 1, the lower of two medians.
- **loss**: increase of perplexity over PyTorch float32, with the standard error of the paired difference.
- **KL, top-1**: mean divergence from PyTorch's predictions, and positions where both prefer the same token.
- **rerouted**: choices of an expert, by token and layer, that are not PyTorch's.
- **seconds**: that the method took.

The pipeline's own choice for each precision is in bold.

![Divergence against size, by method and precision](quality.png)
"""
_MODEL = """
## {model}

{description}. {tokens:,} tokens of held-out text, {classifications} classifications, {summaries} titles.

{table}
"""
_TAIL = """
## Bounds

{bounds}

## The methods

| method | makes | what it does | needs |
|---|---|---|---|
{methods}

    llama4-pipeline quantize --graph GRAPH --out OUT --precision int4 --method gptq --calibration TEXT
    llama4-pipeline eval --graph OUT --checkpoint CHECKPOINT --data TEXT

An expert that fewer than {minimum} calibration tokens reach is quantized by `{fallback}`, with a warning that names it.
"""


def write_page(page: Path, measured: Mapping[str, Compared], sizes: Mapping[str, float]) -> None:
    """Writes the page of all models anew."""
    machine = describe_machine()
    head = _HEAD.format(
        date=datetime.date.today().isoformat(),
        cpu=machine.cpu,
        cores=machine.cores,
        memory=machine.memory_bytes / (1 << 30),
        onnxruntime=machine.libraries["onnxruntime"],
    )
    models = [_model(model, each) for model, each in measured.items()]
    methods = "\n".join(map(_method, METHODS))
    tail = _TAIL.format(
        bounds=_bounds(sizes), methods=methods, minimum=MINIMUM_TOKENS, fallback=FALLBACK.name
    )
    page.parent.mkdir(exist_ok=True)
    picture = draw_tradeoff({model: each.rows for model, each in measured.items()})
    assert picture is not None
    page.with_suffix(".png").write_bytes(to_png(picture))
    page.write_text("".join([head, *models, tail]))


def _model(model: str, compared: Compared) -> str:
    quality = compared.rows[0].quality
    return _MODEL.format(
        model=model,
        description=find_model(model, load_catalog(CATALOG)).description,
        tokens=quality.tokens,
        classifications=quality.classifications,
        summaries=quality.summaries,
        table=table(compared),
    )


def _method(name: str) -> str:
    terms = METHODS[name]
    needs = [
        what
        for what, wanted in (("text", terms.calibration == "needed"), ("checkpoint", terms.checkpoint))
        if wanted
    ]
    return f"| `{name}` | {', '.join(terms.precisions)} | {terms.does} | {', '.join(needs)} |"


def _bounds(sizes: Mapping[str, float]) -> str:
    losses = [
        f"- {precision} {method}: perplexity at most {bound:+.1%}"
        for (precision, method), bound in LARGEST_LOSS.items()
    ]
    return "\n".join(
        [
            *losses,
            f"- int4 {DEFAULTS['int4']}: at most {LARGEST_SHARE_OF_RTN:.0%} of the loss of rtn",
            "- all of these: accuracy and ROUGE-L no more than a standard error below float32",
            f"- every method but {' and '.join(SHOWN_FOR_THEIR_LIMITS)}: at most {LARGEST_SIZE_OF_RTN - 1:.0%} "
            f"more bytes of weights and {LARGEST_TIME_OF_RTN - 1:.0%} more time a token than rtn in the same precision",
            *(
                f"- {MODEL} in {precision}: {share:.3f} of the float32 size, at most {LARGEST_SHARE[precision]}"
                for precision, share in sizes.items()
            ),
        ]
    )


def table(compared: Compared) -> str:
    """The rows of one model in Markdown."""
    cells = [_cells(row, compared.seconds[row.name]) for row in compared.rows]
    return tabulate(cells, _HEADS, "github", disable_numparse=True)


def _cells(row: MethodResult, seconds: float | None) -> tuple[str, ...]:
    quality = row.quality
    default = DEFAULTS.get(row.precision) == row.method
    return (
        row.precision,
        f"**{row.method}**" if default else row.method,
        format_bytes(row.model_bytes),
        format_number(row.decode_latency_ms),
        _with_error(quality.perplexity, quality.perplexity_stderr, ".3f"),
        _with_error(100 * row.loss, 100 * (quality.perplexity_ratio_stderr or 0), "+.3f", "%"),
        f"{format_number(quality.kl_divergence or 0)} ± {format_number(quality.kl_stderr or 0)}",
        f"{quality.top1_agreement:.1%}",
        "-" if quality.expert_change_share is None else f"{quality.expert_change_share:.2%}",
        _with_error(quality.accuracy, quality.accuracy_stderr, ".3f"),
        _with_error(quality.rougeL, quality.rougeL_stderr, ".3f"),
        "-" if seconds is None else f"{seconds:.0f}",
    )


def _with_error(value: float | None, error: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None or error is None else f"{value:{form}} ± {error:{form.lstrip('+')}}{unit}"
