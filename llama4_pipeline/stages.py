"""The stages of the pipeline, declared: what each is made from and what decides its bytes.

The assets, the keys of the store and `llama4-pipeline plan` all read this one table. It is in the order of the
work: a stage stands behind its inputs.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from llama4_pipeline.builders.benchmark import float_graph
from llama4_pipeline.builders.checkpoint import TAKEN
from llama4_pipeline.builders.files import CALIBRATION, JUDGED_ON, SENSITIVITY
from llama4_pipeline.data.samples import LIBRARY_PREFIX
from llama4_pipeline.device import Device
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint_directory import TOKENIZER_FILES
from llama4_pipeline.methods import METHODS

if TYPE_CHECKING:
    from llama4_pipeline.catalog import ModelSpec

Parameters = Callable[["ModelSpec", Device], dict[str, Any]]
"""The JSON values that a stage's function is called with, for a model on a device."""
Reads = Callable[["ModelSpec", Device], Mapping[str, Collection[str]]]
"""For a model on a device, the inputs that a stage's function does not read as a whole, each with what it reads."""

_RUNTIME = "onnxruntime|onnxruntime-gpu"
_JUDGES = ("tokenizers", "rouge-score", "regex")  # shape what text is scored, and how
_EXPORTERS = ("onnxscript", "optimum", "onnxsim")  # of what qat has trained
_REVALIDATED_LENGTHS = (1, 7, 129)


def _no_parameters(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {}


def _whole_inputs(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One step of the migration.

    Attributes:
        name: Of the stage, its asset and its directory in the store.
        description: What it is, in one line.
        build: "module:function" that writes the artifact: (inputs: name -> directory, parameters, out) ->
            facts.
        inputs: Stages whose artifacts the function reads.
        libraries: Distributions that shape the bytes; `a|b` for whichever is installed.
        parameters: What the function is called with; nothing else of the model reaches it.
        reads: What the function reads of its inputs, where that is not all; the rest decides nothing, and an input
            of which no file is read need not be there.
        measures: Whether the artifact is a measurement, which holds for one machine only.
        may_use_gpu: Whether it may compute on the GPU, which one step at a time has.
        check: What must hold before the artifact is published, or None.
        group: Of assets, as the UI shows them.
        kinds: Technologies, as the UI shows them.
    """

    name: str
    description: str
    build: str
    inputs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    parameters: Parameters = _no_parameters
    reads: Reads = _whole_inputs
    measures: bool = False
    may_use_gpu: bool = False
    check: str | None = None
    group: str = "graph"
    kinds: tuple[str, ...] = ("onnx",)

    def deciding_inputs(self, model: "ModelSpec", device: Device) -> dict[str, Collection[str] | None]:
        """The inputs that decide what is made, each with the files that do, or None for all of them."""
        reads = self.reads(model, device)
        return {name: reads.get(name) for name in self.inputs if name not in reads or reads[name]}


def _checkpoint(model: "ModelSpec", device: Device) -> dict[str, Any]:
    kind, _, place = model.source.partition(":")
    if kind in ("trained", "random"):
        return {
            "source": model.source,
            "config": dict(model.config),
            "dtype": model.stored_dtype,
            "seed": model.seed,
        }
    if kind == "local":
        return {"source": model.source, "files": _files_of(Path(place))}
    return {"source": model.source}


def _files_of(directory: Path) -> dict[str, list[int]]:
    """Size and time of modification of each file that is taken: enough to see that a local checkpoint was replaced."""
    if not directory.is_dir():
        what = "is a file, expected a checkpoint's directory" if directory.exists() else "no such directory"
        raise InputError(f"{directory}: {what}; correct the model's source in the catalog")
    files = sorted({path for pattern in TAKEN for path in directory.glob(pattern) if path.is_file()})
    return {path.name: _state_of(path)[1] for path in files}


def _datasets(model: "ModelSpec", device: Device) -> dict[str, Any]:
    sources = model.data.model_dump(exclude_none=True)
    files = [Path(source) for source in sources.values() if not source.startswith(LIBRARY_PREFIX)]
    own = {"sources": sources, "files": dict(map(_state_of, files))} if sources else {}
    context = {"max_context": model.max_context} if model.has_trained_weights else {}
    return {"cover_experts": model.is_run_for_quantization, **context, **own}


def _state_of(file: Path) -> tuple[str, list[int]]:
    """Size and time of modification: enough to see that a file was replaced."""
    if not file.is_file():
        raise InputError(f"{file}: no such data file; correct the model's data in the catalog")
    return str(file), [file.stat().st_size, file.stat().st_mtime_ns]


def _export(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {"opset": 20, "max_context": model.max_context}


def _validate(model: "ModelSpec", device: Device) -> dict[str, Any]:
    batches = list(model.benchmark.batch_sizes)
    return {"validation": {"lengths": "default", "batches": batches, "greedy_tokens": 64}}


def _revalidate(model: "ModelSpec", device: Device) -> dict[str, Any]:
    lengths = [length for length in _REVALIDATED_LENGTHS if length <= model.max_context]
    return {"validation": {"lengths": lengths, "batches": [1, 2], "greedy_tokens": 32}}


def _int8(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {"precision": "int8", "method": model.method_of("int8"), "device": device.name}


def _int4(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {"precision": "int4", "method": model.method_of("int4"), "device": device.name}


def _datasets_reads(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    if model.is_run_for_quantization:
        return {}
    return {"checkpoint": TOKENIZER_FILES if model.has_trained_weights else []}


def _quantize_reads(
    model: "ModelSpec", device: Device, precision: Literal["int8", "int4"]
) -> dict[str, Collection[str]]:
    """A method reads the calibration text where it needs one, and the checkpoint where it trains it."""
    terms = METHODS[model.method_of(precision)]
    text: dict[str, Collection[str]] = {"datasets": [CALIBRATION] if terms.needs_text else []}
    return text if terms.checkpoint else text | {"checkpoint": []}


def _tradeoff_reads(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    if _compare(model, device)["compare"]:
        return {}
    return {"checkpoint": [], "datasets": [], "optimized_graph": []}


def _baseline_reads(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    return {"datasets": JUDGED_ON.values() if model.has_trained_weights else []}


def _benchmark_reads(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    unmeasured = {"optimized_graph", "fp16_graph"} - {float_graph(device.name)}
    return _baseline_reads(model, device) | dict.fromkeys(unmeasured, ())


def _report_reads(model: "ModelSpec", device: Device) -> dict[str, Collection[str]]:
    """The page has the table's figures from where the table has them."""
    return {"benchmark_table": [], "int4_graph": [SENSITIVITY]}


def _compare(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {"compare": list(model.quantization.compare) if model.has_trained_weights else []}


def _measure(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {
        "model": model.name,
        "device": device.name,
        "benchmark": model.benchmark.model_dump(mode="json"),
        "trained": model.has_trained_weights,
        "max_context": model.max_context,
    }


def _present(model: "ModelSpec", device: Device) -> dict[str, Any]:
    return {"model": model.name, "trained": model.has_trained_weights}


_STAGES = (
    Stage(
        "checkpoint",
        "The model in PyTorch: a Hugging Face directory, trained here, taken from disk or hub, or random weights.",
        build="llama4_pipeline.builders.checkpoint:build",
        libraries=("python", "torch", "transformers", "tokenizers"),
        parameters=_checkpoint,
        group="data",
        kinds=("pytorch", "huggingface"),
    ),
    Stage(
        "datasets",
        "Texts to calibrate quantization on, to take perplexity on, and two tasks: title a text, classify it.",
        build="llama4_pipeline.builders.datasets:build",
        inputs=("checkpoint",),
        libraries=("python", "torch", "transformers", "tokenizers"),
        parameters=_datasets,
        reads=_datasets_reads,
        group="data",
        kinds=("python",),
    ),
    Stage(
        "pytorch_baseline",
        "What there was before the migration: transformers eager, its latency, memory and quality.",
        build="llama4_pipeline.builders.baseline:build",
        inputs=("checkpoint", "datasets"),
        libraries=("torch", "transformers", *_JUDGES),
        parameters=_measure,
        reads=_baseline_reads,
        measures=True,
        may_use_gpu=True,
        group="measurement",
        kinds=("pytorch",),
    ),
    Stage(
        "exported_graph",
        "The checkpoint as one portable ONNX graph with dynamic batch, sequence and KV cache.",
        build="llama4_pipeline.builders.export:build",
        inputs=("checkpoint",),
        libraries=("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "optimum"),
        parameters=_export,
        kinds=("onnx", "pytorch"),
    ),
    Stage(
        "validated_graph",
        "The exported graph, once it computes what PyTorch computes in every layer and at every length.",
        build="llama4_pipeline.builders.validate:build",
        inputs=("checkpoint", "exported_graph"),
        libraries=("torch", "transformers", "onnx", "onnx-ir", _RUNTIME),
        parameters=_validate,
        check="matches_pytorch",
        kinds=("onnx", "onnxruntime"),
    ),
    Stage(
        "simplified_graph",
        "The validated graph without what onnxsim finds superfluous, validated again.",
        build="llama4_pipeline.builders.simplify:build",
        inputs=("checkpoint", "validated_graph"),
        libraries=("onnx", "onnx-ir", "onnxsim", "torch", "transformers", _RUNTIME),
        parameters=_revalidate,
        check="matches_pytorch",
    ),
    Stage(
        "optimized_graph",
        "The fused graph: attention with in-place KV cache, sparse experts, skip-normalization; validated again.",
        build="llama4_pipeline.builders.optimize:build",
        inputs=("checkpoint", "simplified_graph"),
        libraries=("onnx", "onnx-ir", "onnxscript", "torch", "transformers", _RUNTIME),
        parameters=_revalidate,
        check="matches_pytorch",
        kinds=("onnx", "onnxruntime"),
    ),
    Stage(
        "fp16_graph",
        "The fused graph with float16 weights and activations, for GPUs.",
        build="llama4_pipeline.builders.float16:build",
        inputs=("optimized_graph",),
        libraries=("onnx", "onnx-ir", "numpy", _RUNTIME),
        group="quantization",
    ),
    Stage(
        "int8_graph",
        "The fused graph with every large weight in 8 bits, experts included.",
        build="llama4_pipeline.builders.quantize:build",
        inputs=("checkpoint", "optimized_graph", "datasets"),
        libraries=("torch", "transformers", "tokenizers", *_EXPORTERS, "onnx", "onnx-ir", "numpy", _RUNTIME),
        parameters=_int8,
        reads=partial(_quantize_reads, precision="int8"),
        group="quantization",
    ),
    Stage(
        "int4_graph",
        "The fused graph with its weights in 4 bits, experts included, and in 8 where rounding would show.",
        build="llama4_pipeline.builders.quantize:build",
        inputs=("checkpoint", "optimized_graph", "datasets"),
        libraries=("torch", "transformers", "tokenizers", *_EXPORTERS, "onnx", "onnx-ir", "numpy", _RUNTIME),
        parameters=_int4,
        reads=partial(_quantize_reads, precision="int4"),
        group="quantization",
    ),
    Stage(
        "quantization_tradeoff",
        "What every method of quantization that the model's plan compares loses, against what its graph weighs.",
        build="llama4_pipeline.builders.tradeoff:build",
        inputs=("checkpoint", "datasets", "optimized_graph"),
        libraries=("torch", "transformers", *_JUDGES, *_EXPORTERS, "onnx", "onnx-ir", "numpy", _RUNTIME),
        parameters=_compare,
        reads=_tradeoff_reads,
        group="quantization",
        kinds=("onnx", "onnxruntime"),
    ),
    Stage(
        "benchmarks",
        "Every engine measured on this machine, each in a process of its own: speed, memory, size, quality.",
        build="llama4_pipeline.builders.benchmark:build",
        inputs=(
            "checkpoint",
            "datasets",
            "pytorch_baseline",
            "optimized_graph",
            "fp16_graph",
            "int8_graph",
            "int4_graph",
        ),
        libraries=("numpy", _RUNTIME, "tensorrt-llm", *_JUDGES),
        parameters=_measure,
        reads=_benchmark_reads,
        measures=True,
        may_use_gpu=True,
        group="measurement",
        kinds=("onnxruntime", "pytorch"),
    ),
    Stage(
        "benchmark_table",
        "The measurements as one table: Parquet, CSV and Markdown.",
        build="llama4_pipeline.builders.table:build",
        inputs=("benchmarks",),
        libraries=("pandas", "pyarrow"),
        parameters=_present,
        group="report",
        kinds=("pandas", "parquet"),
    ),
    Stage(
        "report",
        "One self-contained page: the table, the plots, and which of the promises hold.",
        build="llama4_pipeline.builders.report:build",
        inputs=("benchmarks", "benchmark_table", "int4_graph", "quantization_tradeoff"),
        libraries=("matplotlib", "jinja2"),
        parameters=_present,
        reads=_report_reads,
        group="report",
        kinds=("matplotlib", "html"),
    ),
)

STAGES = MappingProxyType({stage.name: stage for stage in _STAGES})
