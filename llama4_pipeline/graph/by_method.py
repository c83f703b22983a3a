"""A fused graph to fewer bits, by the name of a method: what `quantize --method` and the stages call."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from llama4_pipeline.graph.convert import (
    is_float16,
    require_convertible,
    require_unquantized,
    write_float16,
)
from llama4_pipeline.graph.external_data import load_fused_graph
from llama4_pipeline.graph.qat import quantize_aware
from llama4_pipeline.graph.quantize import Precision, quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.plan import DeviceName
from llama4_pipeline.graph.quantize.qdq import quantize_with_ort
from llama4_pipeline.graph.quantize.report import QuantizeReport
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.methods import QAT, QDQ_DYNAMIC, QDQ_STATIC, choose_method


class Report(Protocol):
    """What a quantization has to tell."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""


def quantize(
    graph: Path,
    out: Path,
    *,
    precision: Precision,
    method: str | None = None,
    block_size: int | None = None,
    calibration: Calibration | None = None,
    checkpoint: Checkpoint | None = None,
    device: DeviceName = "cpu",
) -> Report:
    """Writes the quantized form of a fused graph directory.

    Args:
        graph: directory of a fused float graph.
        out: directory to write.
        precision: "int8" or "int4".
        method: a name of `methods.METHODS`; None takes the precision's default.
        block_size: inputs that share a scale.
        calibration: token sequences.
        checkpoint: the PyTorch original of the graph.
        device: whose kernels are to run the written graph: those of CUDA for attention and for quantized experts take
            float16 activations alone, and scales, which are rounded behind the codes, by less than 0.05%.

    Raises:
        InputError: the method lacks what it needs or is given what it has no use for; the graph is quantized already;
            or as the method raises.
    """
    chosen = choose_method(
        method,
        precision,
        calibration=calibration,
        checkpoint=checkpoint,
        block_size=block_size,
        device=device,
    )
    model = load_fused_graph(graph)
    require_unquantized(model, graph)
    if chosen == QAT:
        assert checkpoint is not None and calibration is not None
        return quantize_aware(
            checkpoint, graph, out, precision=precision, calibration=calibration, device=device
        )
    if chosen in (QDQ_DYNAMIC, QDQ_STATIC):
        return quantize_with_ort(graph, out, method=chosen, calibration=calibration)

    def quantized(place: Path) -> QuantizeReport:
        return quantize_graph(
            graph,
            place,
            precision=precision,
            method=chosen,
            block_size=block_size,
            calibration=calibration,
            device=device,
        )

    if device == "cpu" or is_float16(model):
        return quantized(out)
    require_convertible(model, graph)
    out.mkdir(parents=True, exist_ok=True)
    # Calibration runs what is written, on the CPU.
    with tempfile.TemporaryDirectory(dir=out, prefix=".float32-") as scratch:
        report = quantized(Path(scratch))
        converted = write_float16(load_fused_graph(Path(scratch)), Path(scratch), out)
    return replace(report, bytes_after=converted.bytes_after)
