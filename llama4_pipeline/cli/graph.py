"""Commands from checkpoint to graph and from graph to graph: export, validate, quantize, quantize-cache."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

from llama4_pipeline.cli.output_directory import output_directory
from llama4_pipeline.cli.parameters import (
    BLOCK_SIZES_IN_WORDS,
    FILE,
    OUT,
    POSITIVE,
    BlockSize,
    Integers,
    Lengths,
    WholeGraphDirectory,
    json_option,
)
from llama4_pipeline.cli.result import show
from llama4_pipeline.cli.same_model import require_same_model
from llama4_pipeline.device import find_device
from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config
from llama4_pipeline.methods import DEFAULT_METHOD, METHODS, choose_method
from llama4_pipeline.needs import (
    Conversion,
    Demand,
    Needs,
    conversion_needs,
    needs,
    position_table_bytes,
    running_needs,
)
from llama4_pipeline.preflight import graph_bytes, require
from llama4_pipeline.units import format_bytes

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

_QUANTIZED = ("int8", "int4")
_CALIBRATION_DATA = (
    "a text, JSONL or Parquet file, or datasets:NAME:SPLIT; or token ids, one "
    '{"input_ids": [...]} a line of a JSONL file.'
)
_STAGES = {"portable": "exported_graph", "fused": "optimized_graph"}
_LONGEST_DEFAULT_CONTEXT = 32768
_logger = logging.getLogger(__name__)


_for_device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Whose kernels are to run int8 or int4: for cuda the graph computes in float16.  "
    "[default: cuda where it is, else cpu]",
)


class _Report(Protocol):
    def to_json(self) -> dict[str, Any]: ...


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--out", required=True, type=OUT, metavar="DIR", help="ONNX directory to make.")
@click.option(
    "--opset",
    type=click.IntRange(min=18),
    default=20,
    show_default=True,
    help="A fused graph has 23 at least, for RMSNormalization.",
)
@click.option(
    "--form",
    type=click.Choice(["portable", "fused"]),
    help="Standard operators only, or ONNX Runtime's own.  [default: portable for fp32, else fused]",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", *_QUANTIZED]), default="fp32", show_default=True
)
@click.option(
    "--max-context",
    type=POSITIVE,
    metavar="N",
    help=f"Most tokens of prompt and answer.  [default: the model's, at most {_LONGEST_DEFAULT_CONTEXT}]",
)
@click.option(
    "--method",
    type=click.Choice(["rtn", "k_quant"]),
    help="How int8 and int4 choose codes: rtn is as fast as the disk; k_quant searches, with less error, at a "
    "tenth of that.  [default: rtn]",
)
@_for_device
@click.option(
    "--no-weights", is_flag=True, help="Write the graph only; of the checkpoint, config.json is enough."
)
@json_option
def export(
    checkpoint: str,
    out: Path,
    opset: int,
    form: str | None,
    precision: str,
    max_context: int | None,
    method: str | None,
    device: Literal["cpu", "cuda"] | None,
    no_weights: bool,
    as_json: bool,
) -> None:
    """Turn a Hugging Face directory into an ONNX directory, in one stream: memory does not grow with the model."""
    form = form or ("portable" if precision == "fp32" else "fused")
    if form == "portable" and precision != "fp32":
        raise InputError(f"--form portable has no --precision {precision}: leave one of the two out")
    if method and precision not in _QUANTIZED:
        raise InputError(f"--precision {precision} has no --method: leave one of the two out")
    device = _device_of(precision, device)
    from llama4_pipeline.cli.manifest import write_manifest
    from llama4_pipeline.graph.fuse import OLDEST_OPSET
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    source = Checkpoint.open(checkpoint, with_weights=not no_weights)
    trained = source.architecture.max_position_embeddings
    if max_context and max_context > trained:
        _logger.warning(
            "--max-context %d: the model says that it has seen positions to %d", max_context, trained
        )
    asked: dict[str, Any] = {
        "opset": max(opset, OLDEST_OPSET) if form == "fused" else opset,
        "form": form,
        "precision": precision,
        "method": method or ("rtn" if precision in _QUANTIZED else None),
        "device": device,
        "max_context": max_context or min(trained, _LONGEST_DEFAULT_CONTEXT),
        "weights": not no_weights,
    }
    start = time.monotonic()
    stage = _STAGES[form] if precision == "fp32" else f"{precision}_graph"
    needed = _needs(source, asked)
    require("this export", needed, out)
    with output_directory(out, needed.disk_bytes) as result:
        reports = _stream(source, result, asked | {"opset": opset})
        write_manifest(
            result,
            stage=stage,
            model=Path(checkpoint).absolute().name,
            parameters=asked,
            inputs={},
            facts=reports,
            seconds=time.monotonic() - start,
        )
    _show_graph(out, asked, reports, as_json)


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--graph", required=True, type=WholeGraphDirectory(), metavar="DIR")
@click.option(
    "--lengths",
    type=Lengths(),
    default="default",
    show_default=True,
    metavar="N,N,...",
    help="Numbers of tokens to compare at. default: borders and a sample; all: 1 to 2048.",
)
@click.option("--batch", type=Integers(), default="1,2,4,8", show_default=True, metavar="N,N,...")
@click.option("--text", type=FILE, metavar="FILE", help="Compare every token of it too, and its expert.")
@json_option
def validate(
    checkpoint: str,
    graph: Path,
    lengths: tuple[int, ...] | Any,
    batch: tuple[int, ...],
    text: Path | None,
    as_json: bool,
) -> None:
    """Compare a graph with PyTorch; exit 1 past tolerance."""
    from llama4_pipeline.graph.quantize.calibration_text import read_tokens
    from llama4_pipeline.graph.validate import validate_within_memory
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    source = Checkpoint.open(checkpoint)
    require_same_model(graph, checkpoint, source.architecture)
    tokens = [int(token) for ids in read_tokens(text, source.directory) for token in ids] if text else []
    report = validate_within_memory(source, graph, lengths=lengths, batches=batch, text=tokens)
    show(report.to_json(), report.to_markdown(), as_json)
    if not report.passed:
        raise CheckFailed(
            f"{graph} differs from PyTorch in {len(report.failures)} places; first {report.failures[0]}"
        )


@click.command()
@click.option("--graph", required=True, type=WholeGraphDirectory(), metavar="DIR", help="Fused float graph.")
@click.option("--out", required=True, type=OUT, metavar="DIR", help="ONNX directory to make.")
@click.option("--precision", required=True, type=click.Choice(["fp16", *_QUANTIZED]))
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    help="; ".join(f"{name}: {terms.does}" for name, terms in METHODS.items())
    + f".  [default: {', '.join(f'{method} for {precision}' for precision, method in DEFAULT_METHOD.items())}]",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help=f"Text for methods that look at activations: {_CALIBRATION_DATA}",
)
@click.option("--checkpoint", metavar="DIR", help="The graph's PyTorch original, which qat trains.")
@click.option(
    "--block-size",
    type=BlockSize(),
    metavar="N",
    help=f"Most weights that share a scale: {BLOCK_SIZES_IN_WORDS}; fewer where a width wants it.",
)
@_for_device
@json_option
def quantize(
    graph: Path,
    out: Path,
    precision: Literal["fp16", "int8", "int4"],
    method: str | None,
    calibration: str | None,
    checkpoint: str | None,
    block_size: int | None,
    device: Literal["cpu", "cuda"] | None,
    as_json: bool,
) -> None:
    """Store the weights of a graph in fewer bits."""
    if precision == "fp16" and (method or block_size or calibration or checkpoint):
        raise InputError(
            "--precision fp16 rounds each weight alone: leave out --method, --block-size, --calibration, "
            "--checkpoint"
        )
    device = _device_of(precision, device)
    if precision != "fp16":
        method = choose_method(
            method,
            precision,
            calibration=calibration,
            checkpoint=checkpoint,
            block_size=block_size,
            device=device,
        )
    asked = {
        "precision": precision,
        "method": method,
        "block_size": block_size,
        "calibration": calibration,
        "device": device,
    }
    from llama4_pipeline.cli.manifest import content_digest_of, write_manifest

    start = time.monotonic()
    architecture = Architecture.from_config(read_text_config(graph))
    if checkpoint:
        from llama4_pipeline.llama4.checkpoint import Checkpoint

        trained = Checkpoint.open(checkpoint, with_weights=False)
        require_same_model(graph, checkpoint, trained.architecture)
    conversion = Conversion(precision, method, calibrated=calibration is not None, device=device or "cpu")
    needed = conversion_needs(architecture, conversion)
    require("this conversion", needed, out)
    with output_directory(out, needed.disk_bytes) as result:
        report = _convert(graph, result, precision, method, block_size, calibration, checkpoint, device)
        reports = {"quantize": report.to_json()}
        write_manifest(
            result,
            stage=f"{precision}_graph",
            model=graph.absolute().name,
            parameters=asked,
            inputs=content_digest_of(graph),
            facts=reports,
            seconds=time.monotonic() - start,
        )
    _show_graph(out, asked, reports, as_json)


@click.command("quantize-cache")
@click.option(
    "--graph", required=True, type=WholeGraphDirectory(), metavar="DIR", help="Fused, with a float32 cache."
)
@click.option("--out", required=True, type=OUT, metavar="DIR", help="ONNX directory to make.")
@click.option(
    "--calibration",
    required=True,
    metavar="DATA",
    help=f"Text that sets the range of keys and values: {_CALIBRATION_DATA}",
)
@json_option
def quantize_cache(graph: Path, out: Path, calibration: str, as_json: bool) -> None:
    """Store keys and values of a graph in 8 bits: a quarter of the cache, slower prompts, the same weights."""
    from llama4_pipeline.cli.manifest import content_digest_of, write_manifest
    from llama4_pipeline.graph.quantize.cache import quantize_cache as convert
    from llama4_pipeline.graph.quantize.calibration_text import read_calibration

    start = time.monotonic()
    asked, made_from = {"calibration": calibration}, content_digest_of(graph)
    needed = running_needs(graph_bytes(graph))
    require("this conversion", needed, out)
    with output_directory(out, needed.disk_bytes) as result:
        report = convert(graph, result, read_calibration(calibration, graph))
        reports = {"quantize": report.to_json()}
        write_manifest(
            result,
            stage=next(iter(made_from), "optimized_graph"),
            model=graph.absolute().name,
            parameters=asked,
            inputs=made_from,
            facts=reports,
            seconds=time.monotonic() - start,
        )
    _show_graph(out, asked, reports, as_json)


def _device_of(precision: str, device: Literal["cpu", "cuda"] | None) -> Literal["cpu", "cuda"] | None:
    """Whose kernels a quantized graph is made for; None for others."""
    if precision in _QUANTIZED:
        return device or find_device().name
    if device:
        raise InputError(
            f"--precision {precision} has no --device: a graph for CUDA is fp16, or int8 or int4 with --device cuda"
        )
    return None


def _stream(source: "Checkpoint", out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    from llama4_pipeline.graph.one_stream import export_in_one_stream

    return export_in_one_stream(
        source,
        out,
        form=asked["form"],
        precision=asked["precision"],
        max_context=asked["max_context"],
        opset=asked["opset"],
        method=asked["method"],
        device=asked["device"] or "cpu",
        with_weights=asked["weights"],
    )


def _needs(source: "Checkpoint", asked: Mapping[str, Any]) -> Needs:
    """What the export of a checkpoint needs."""
    precision = asked["precision"]
    stage = "exported_graph" if precision == "fp32" else f"{precision}_graph"
    dtype = source.weights.dtype(source.weights.names()[0]).name
    whole = needs(Demand(source.architecture, "local", dtype, cached_tokens=0), stage)
    if not asked["weights"]:
        return Needs(whole.memory_bytes, 0)
    if asked["form"] == "portable":
        return whole
    half = precision == "fp16" or asked["device"] == "cuda"
    tables = position_table_bytes(source.architecture, asked["max_context"], half=half)
    return Needs(whole.memory_bytes, whole.disk_bytes + tables)


def _convert(
    graph: Path,
    out: Path,
    precision: Literal["fp16", "int8", "int4"],
    method: str | None,
    block_size: int | None,
    calibration: str | None,
    checkpoint: str | None,
    device: Literal["cpu", "cuda"] | None,
) -> _Report:
    if precision == "fp16":
        from llama4_pipeline.graph.convert import convert_to_float16

        return convert_to_float16(graph, out)
    from llama4_pipeline.graph.by_method import quantize
    from llama4_pipeline.graph.quantize.calibration_text import read_calibration
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    return quantize(
        graph,
        out,
        precision=precision,
        method=method,
        block_size=block_size,
        calibration=read_calibration(calibration, graph) if calibration else None,
        checkpoint=Checkpoint.open(checkpoint) if checkpoint else None,
        device=device or "cpu",
    )


def _show_graph(out: Path, asked: Mapping[str, Any], reports: Mapping[str, Any], as_json: bool) -> None:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    settings = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    show(
        {"graph": str(out), **asked, "bytes": size, "steps": reports},
        f"{out}: {format_bytes(size)}, {settings}",
        as_json,
    )


COMMANDS = (export, validate, quantize, quantize_cache)
