"""A checkpoint to the graph that was asked for in one stream: each weight is read once and written once.

Export, simplification, fusion and conversion work on one graph in memory, whose weights are references to the
checkpoint; they are read, converted and written at the very end, piece by piece. The same bytes as stage after stage.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_model
from llama4_pipeline.graph.export import export_model
from llama4_pipeline.graph.external_data import check_graph, save_graph
from llama4_pipeline.graph.fuse import fuse_model
from llama4_pipeline.graph.quantize import quantize_model
from llama4_pipeline.graph.quantize.plan import DeviceName, require_widths
from llama4_pipeline.graph.simplify import simplify_model
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.methods import METHODS, choose_method

Precision = Literal["fp32", "fp16", "int8", "int4"]
Form = Literal["portable", "fused"]
_logger = logging.getLogger(__name__)


def export_in_one_stream(
    checkpoint: Checkpoint,
    out: Path,
    *,
    form: Form,
    precision: Precision,
    max_context: int,
    opset: int = 20,
    method: str | None = None,
    device: DeviceName = "cpu",
    with_weights: bool = True,
) -> dict[str, dict[str, Any]]:
    """Writes the graph directory of a checkpoint in any form and precision, without files in between.

    Args:
        checkpoint: an opened checkpoint; synthetic weights are made on demand.
        out: directory for model, data, configuration and tokenizer.
        form: "portable" is float32 only.
        precision: of the weights; fp16 also of activations and cache.
        max_context: tokens that the fused graph serves.
        opset: of the standard domain.
        method: of quantisation, one that looks at weights only; None takes that of the precision.
        device: whose kernels are to run a quantized graph: for CUDA its activations and cache are float16.
        with_weights: False writes the graph alone.

    Returns:
        What each step reports, by its name: export, simplify, fuse, and convert or quantize.

    Raises:
        InputError: the model cannot be exported or converted, or the method needs calibration.
        ValueError: a step's own check failed, or onnx refuses the graph.
    """
    if form == "portable" and precision != "fp32":
        raise InputError(f"a portable graph has no {precision}: ask for the fused form")
    if method is not None and method in METHODS and METHODS[method].needs_text:
        raise InputError(
            f"method {method} looks at activations: export in fp32, then `quantize --method {method}`"
        )
    if precision in ("int8", "int4"):
        method = choose_method(method, precision, calibration=None, device=device)
        require_widths(checkpoint.architecture, device)
    start = time.monotonic()
    _logger.info("export")
    model, exported = export_model(checkpoint, opset=opset, max_context=max_context)
    reports: dict[str, dict[str, Any]] = {"export": {}}
    report_conversion: Callable[[], dict[str, Any]] | None = None
    if form == "fused":
        _logger.info("simplify")
        model, simplified = simplify_model(model)
        _logger.info("fuse")
        reports |= {"simplify": simplified.to_json(), "fuse": fuse_model(model).to_json()}
        report_conversion = _convert(model, precision, method, device)
    check_graph(model)
    _logger.info("write")
    save_graph(model, out, share_weights=False, with_weights=with_weights)
    checkpoint.copy_sidecars(out)
    if report_conversion:
        reports["convert" if precision == "fp16" else "quantize"] = report_conversion()
    reports["export"] = replace(exported, seconds=time.monotonic() - start).to_json()
    return reports


def _convert(
    model: ir.Model, precision: Precision, method: str | None, device: DeviceName
) -> Callable[[], dict[str, Any]] | None:
    """Converts a fused graph in place; returns what makes the report once it is written."""
    if precision == "fp32":
        return None
    if precision == "fp16":
        return convert_model(model).to_json
    assert method is not None
    report = quantize_model(model, precision=precision, method=method, device=device)
    if device == "cpu":
        return lambda: report().to_json()
    converted = convert_model(model)
    return lambda: replace(report(), bytes_after=converted.bytes_after).to_json()
