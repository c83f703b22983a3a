"""Commands from checkpoint to graph and from graph to graph: export, validate, quantize."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

from llama4_pipeline.cli.output_directory import Workspace, output_directory
from llama4_pipeline.cli.parameters import FILE, OUT, POSITIVE, GraphDirectory, Integers, Lengths, json_option
from llama4_pipeline.cli.result import show
from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.report.units import format_bytes

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

_BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
_QUANTIZED = ("int8", "int4")
_STAGES = {"portable": "exported_graph", "fused": "optimized_graph"}
_LONGEST_DEFAULT_CONTEXT = 32768
_logger = logging.getLogger(__name__)


class _Report(Protocol):
    def to_json(self) -> dict[str, Any]: ...


Step = Callable[[Path, Path], _Report]
"""Reads a graph directory, writes the next, reports what it did."""


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--out", required=True, type=OUT, metavar="DIR", help="ONNX directory to make.")
@click.option("--opset", type=click.IntRange(min=18), default=20, show_default=True)
@click.option(
    "--form",
    type=click.Choice(["portable", "fused"]),
    help="Standard operators only, or ONNX Runtime's own.  [default: portable for fp32, else fused]",
)
@click.option("--precision", type=click.Choice(list(_BYTES_PER_WEIGHT)), default="fp32", show_default=True)
@click.option(
    "--max-context",
    type=POSITIVE,
    metavar="N",
    help=f"Most tokens of prompt and answer.  [default: the model's, at most {_LONGEST_DEFAULT_CONTEXT}]",
)
@click.option("--no-weights", is_flag=True, help="Write the graph only.")
@json_option
def export(
    checkpoint: str,
    out: Path,
    opset: int,
    form: str | None,
    precision: str,
    max_context: int | None,
    no_weights: bool,
    as_json: bool,
) -> None:
    """Turn a Hugging Face directory into an ONNX directory."""
    form = form or ("portable" if precision == "fp32" else "fused")
    if form == "portable" and precision != "fp32":
        raise InputError(f"--form portable has no --precision {precision}: leave one of the two out")
    if no_weights and precision != "fp32":
        raise InputError(f"--no-weights leaves nothing to convert to {precision}: leave one of the two out")
    from llama4_pipeline.cli.manifest import write_manifest
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    source = Checkpoint.open(checkpoint)
    asked: dict[str, Any] = {
        "opset": opset,
        "form": form,
        "precision": precision,
        "max_context": max_context
        or min(source.architecture.max_position_embeddings, _LONGEST_DEFAULT_CONTEXT),
        "weights": not no_weights,
    }
    start = time.monotonic()
    with output_directory(out, _export_bytes(source, asked)) as workspace:
        reports = _run_steps(_export_steps(source, asked), source.directory, workspace)
        write_manifest(
            workspace.result,
            stage=_STAGES[form] if precision == "fp32" else f"{precision}_graph",
            model=Path(checkpoint).name,
            parameters=asked,
            inputs={},
            facts=reports,
            seconds=time.monotonic() - start,
        )
    _show_graph(out, asked, reports, as_json)


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--graph", required=True, type=GraphDirectory(), metavar="DIR")
@click.option(
    "--lengths",
    type=Lengths(),
    default="default",
    show_default=True,
    metavar="N,N,...",
    help="Numbers of tokens to compare at. default: borders and a sample; all: 1 to 2048.",
)
@click.option("--batch", type=Integers(), default="1,2,4,8", show_default=True, metavar="N,N,...")
@json_option
def validate(
    checkpoint: str, graph: Path, lengths: tuple[int, ...] | Any, batch: tuple[int, ...], as_json: bool
) -> None:
    """Compare a graph with PyTorch; exit 1 past tolerance."""
    from llama4_pipeline.graph.validate import validate_graph
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    report = validate_graph(Checkpoint.open(checkpoint), graph, lengths=lengths, batches=batch)
    show(report.to_json(), report.to_markdown(), as_json)
    if not report.passed:
        raise CheckFailed(
            f"{graph} differs from PyTorch in {len(report.failures)} places; first {report.failures[0]}"
        )


@click.command()
@click.option("--graph", required=True, type=GraphDirectory(), metavar="DIR", help="Fused float graph.")
@click.option("--out", required=True, type=OUT, metavar="DIR", help="ONNX directory to make.")
@click.option("--precision", required=True, type=click.Choice(["fp16", *_QUANTIZED]))
@click.option("--method", metavar="NAME", help="rtn, k_quant.  [default: rtn for int8, k_quant for int4]")
@click.option("--calibration", type=FILE, metavar="FILE", help="Text, for methods that look at activations.")
@click.option("--block-size", type=POSITIVE, metavar="N", help="Weights that share a scale.")
@json_option
def quantize(
    graph: Path,
    out: Path,
    precision: Literal["fp16", "int8", "int4"],
    method: str | None,
    calibration: Path | None,
    block_size: int | None,
    as_json: bool,
) -> None:
    """Store the weights of a graph in fewer bits."""
    asked = {"precision": precision, "method": method, "block_size": block_size}
    if precision == "fp16" and (method or block_size or calibration):
        raise InputError(
            "--precision fp16 rounds each weight alone: leave out --method, --block-size, --calibration"
        )
    from llama4_pipeline.cli.manifest import content_digest_of, write_manifest

    start = time.monotonic()
    with output_directory(out, _quantized_bytes(graph, precision)) as workspace:
        step = _conversion(precision, method, block_size, calibration)
        reports = _run_steps({"quantize": step}, graph, workspace)
        write_manifest(
            workspace.result,
            stage=f"{precision}_graph",
            model=graph.resolve().name,
            parameters=asked,
            inputs=content_digest_of(graph),
            facts=reports,
            seconds=time.monotonic() - start,
        )
    _show_graph(out, asked, reports, as_json)


def _export_steps(source: "Checkpoint", asked: Mapping[str, Any]) -> dict[str, Step]:
    """The stages between a checkpoint and the graph that was asked for, in order."""
    from llama4_pipeline.graph.export import export_graph

    def trace(_checkpoint: Path, out: Path) -> _Report:
        return export_graph(
            source, out, opset=asked["opset"], max_context=asked["max_context"], with_weights=asked["weights"]
        )

    steps: dict[str, Step] = {"export": trace}
    if asked["form"] == "fused":
        from llama4_pipeline.graph.fuse import fuse_graph
        from llama4_pipeline.graph.simplify import simplify_graph

        steps |= {"simplify": simplify_graph, "fuse": fuse_graph}
    if asked["precision"] != "fp32":
        steps["quantize"] = _conversion(asked["precision"], None, None, None)
    return steps


def _conversion(
    precision: Literal["fp16", "int8", "int4"],
    method: str | None,
    block_size: int | None,
    calibration: Path | None,
) -> Step:
    if precision == "fp16":
        from llama4_pipeline.graph.convert import convert_to_float16

        return convert_to_float16
    from llama4_pipeline.graph.quantize import DEFAULT_METHOD, METHODS, quantize_graph

    chosen = METHODS.get(method or DEFAULT_METHOD[precision])
    if calibration and chosen and not chosen.needs_calibration:
        raise InputError(f"--method {chosen.name} looks at weights only: leave out --calibration")

    def convert(graph: Path, out: Path) -> _Report:
        return quantize_graph(graph, out, precision=precision, method=method, block_size=block_size)

    return convert


def _run_steps(steps: Mapping[str, Step], start: Path, workspace: Workspace) -> dict[str, Any]:
    """Runs steps one after the other, the last into the result; returns what each reported."""
    reports = {}
    last = list(steps)[-1]
    graph = start
    for name, step in steps.items():
        _logger.info("%s", name)
        target = workspace.result if name == last else workspace.scratch(name)
        reports[name] = step(graph, target).to_json()
        graph = target
    return reports


def _export_bytes(source: "Checkpoint", asked: Mapping[str, Any]) -> int | None:
    """What the steps write for the weights: the float32 graph, and what it is converted to."""
    if not asked["weights"]:
        return None
    converted = 0.0 if asked["precision"] == "fp32" else _BYTES_PER_WEIGHT[asked["precision"]]
    return int(source.architecture.parameters() * (_BYTES_PER_WEIGHT["fp32"] + converted))


def _quantized_bytes(graph: Path, precision: str) -> int:
    """The least that a graph takes after it was converted, from its size as float32."""
    size = sum(file.stat().st_size for file in graph.glob("model.onnx*"))
    return int(size * _BYTES_PER_WEIGHT[precision] / _BYTES_PER_WEIGHT["fp32"])


def _show_graph(out: Path, asked: Mapping[str, Any], reports: Mapping[str, Any], as_json: bool) -> None:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    settings = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    show(
        {"graph": str(out), **asked, "bytes": size, "steps": reports},
        f"{out}: {format_bytes(size)}, {settings}",
        as_json,
    )


COMMANDS = (export, validate, quantize)
