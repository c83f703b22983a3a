"""The ratios that are promised, each worked out from one record: met, missed, or not measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llama4_pipeline_tests.benchmark.record import ModelRecord, Record, Row, best

_BATCHES = (2, 4, 8)
_PREFILLS = (128, 512)
_SHORT, _LONG = 16, 2048
_PYTORCH = ("pytorch float32", "pytorch bfloat16", "torch-compile float32", "torch-compile bfloat16")
_LLAMACPP = ("llama.cpp", "llama.cpp-no-flash-attention")
_ON_CUDA = ("onnxruntime", "onnxruntime-cuda-graph")
_ROOFLINE_SHARE = {"scout": 0.5}
_USUAL_ROOFLINE_SHARE = 0.4


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        model: as the page names it.
        what: the ratio in words.
        value: None where a row that it needs was not measured.
        bound: what it must reach, or must not pass.
        at_least: whether the bound is the least or the most.
    """

    model: str
    what: str
    value: float | None
    bound: float
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """In one or two words."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value >= self.bound) == self.at_least or self.value == self.bound else "missed"


def targets(record: Record) -> list[Target]:
    """Every promise for every model of a record made on the CPU, or on CUDA."""
    work_out = _on_cpu if record.device == "cpu" else _on_cuda
    return [target for model in record.models for target in work_out(model)]


def _on_cpu(model: ModelRecord) -> Iterator[Target]:
    int4, int8 = model.row("onnxruntime int4"), model.row("onnxruntime int8")
    share = _ROOFLINE_SHARE.get(model.name, _USUAL_ROOFLINE_SHARE)
    value = int4 and int4.roofline(_SHORT, model.bandwidth)
    yield Target(model.title, f"INT4 decode after {_SHORT}: share of the roofline", value, share)
    if model.name in _ROOFLINE_SHARE:
        return
    yield from _against_llamacpp(model, "INT4", int4, "Q4_0", 1.0)
    yield from _against_llamacpp(model, "INT8", int8, "Q8_0", 1.1)
    value, pytorch = _times_pytorch(model, int4, lambda row: row.decode(_SHORT))
    yield Target(model.title, f"INT4 decode after {_SHORT}: times {pytorch}", value, 10.0)
    for tokens in _PREFILLS:
        value, pytorch = _times_pytorch(model, int4, lambda row, tokens=tokens: row.prefill(tokens))
        yield Target(model.title, f"INT4 prefill of {tokens}: times {pytorch}", value, 2.0)
    load = int4 and int4.median(lambda run: run.load_seconds)
    yield Target(model.title, "INT4: seconds to load", load, 2.0, at_least=False)
    yield Target(
        model.title,
        "INT4: peak memory over model file and KV cache",
        int4 and int4.memory_ratio(),
        1.25,
        at_least=False,
    )


def _times_pytorch(
    model: ModelRecord, ours: Row | None, speed: Callable[[Row], float | None]
) -> tuple[float | None, str]:
    """Over the fastest of PyTorch's rows that ran, and what that is the best of.

    A row that ran in the first round alone is held against that round, since a machine is faster at one time than at
    another.
    """
    rows = [row for key in _PYTORCH if (row := model.row(key))]
    times = {row.title: _ratio(ours and speed(ours.first(len(row.runs))), speed(row)) for row in rows}
    ran = {title: value for title, value in times.items() if value is not None}
    return (min(ran.values()), f"the best of {', '.join(ran)}") if ran else (None, "the best of PyTorch")


def _against_llamacpp(
    model: ModelRecord, ours: str, mine: Row | None, theirs: str, decode_bound: float
) -> Iterator[Target]:
    """Speed at a quality not worse, and what a long context costs.

    Each speed is held against the faster of llama.cpp's rows, with flash attention, its default, and without.
    """
    pair = f"{ours} over llama.cpp {theirs}"
    others = [row for engine in _LLAMACPP if (row := model.row(f"{engine} {theirs.lower()}"))]

    def over(speed: Callable[[Row], float | None]) -> float | None:
        return _ratio(mine and speed(mine), best(list(map(speed, others))))

    kl = _ratio(_kl(mine), next(filter(None, map(_kl, others)), None))
    yield Target(model.title, f"KL divergence: {pair}", kl, 1.0, at_least=False)
    for context, bound in ((_SHORT, decode_bound), (_LONG, 1.0)):
        value = over(lambda row, context=context: row.decode(context))
        yield Target(model.title, f"decode after {context}: {pair}", value, bound)
    for tokens in _PREFILLS:
        value = over(lambda row, tokens=tokens: row.prefill(tokens))
        yield Target(model.title, f"prefill of {tokens}: {pair}", value, 1.2)
    slower = _ratio(mine and mine.decode_ms(_LONG), mine and mine.decode_ms(_SHORT))
    yield Target(model.title, f"{ours}: step after {_LONG} over after {_SHORT}", slower, 1.3, at_least=False)
    for batch in _BATCHES:
        value = over(lambda row, batch=batch: row.throughput(batch))
        yield Target(model.title, f"decode at batch {batch}: {pair}", value, 1.0)


def _on_cuda(model: ModelRecord) -> Iterator[Target]:
    """The faster of ONNX Runtime's rows of a precision, with and without a CUDA graph."""
    rows = {
        precision: [row for engine in _ON_CUDA if (row := model.row(f"{engine} {precision}"))]
        for precision in ("int4", "fp16")
    }
    if model.name == "7b":
        share = best([row.roofline(_SHORT, model.bandwidth) for row in rows["int4"]])
        yield Target(model.title, f"INT4 decode after {_SHORT}: share of the roofline", share, 0.5)
    eager = best(
        [row and row.decode(_SHORT) for row in map(model.row, ("pytorch float16", "pytorch bfloat16"))]
    )
    for precision, bound in (("fp16", 2.0), ("int4", 4.0)):
        value = _ratio(best([row.decode(_SHORT) for row in rows[precision]]), eager)
        yield Target(
            model.title, f"{precision.upper()} decode after {_SHORT}: times PyTorch eager", value, bound
        )


def _kl(row: Row | None) -> float | None:
    return row.quality.kl_divergence if row and row.quality else None


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None
