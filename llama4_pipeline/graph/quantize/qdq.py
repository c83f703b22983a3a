"""ONNX Runtime's own INT8 quantizer, for whoever asks for it by name; what it leaves out is reported.

It knows MatMul and Gather. Experts, which lie in MoE nodes, stay in float32, and with them most of the bytes of a
mixture; weights have one scale an output, activations one scale a tensor (measured on the calibration text when
static, taken anew on every call when dynamic). Weights are unsigned: processors with AVX2 and without VNNI add up
products of unsigned and signed bytes in 16 bits, which overflow. What stays float everywhere in this package is kept
out: routers, and the table of attention temperatures, which a Gather reads.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import (
    MODEL_FILE,
    initializer_bytes,
    load_fused_graph,
    load_graph,
    save_graph,
)
from llama4_pipeline.graph.quantize.calibration import Calibration, graph_inputs
from llama4_pipeline.graph.quantize.report import QuantizeReport, TensorReport
from llama4_pipeline.graph.quantize.weights import Weight, find_weights
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.methods import QDQ_DYNAMIC

_logger = logging.getLogger(__name__)

_CALIBRATION_TOKENS = 4096
_OPERATORS = ["MatMul", "Gather"]


def quantize_with_ort(
    graph: Path, out: Path, *, method: str, calibration: Calibration | None = None
) -> QuantizeReport:
    """Writes the INT8 form that `onnxruntime.quantization` makes of a fused float32 graph; it is in memory whole.

    Args:
        graph: directory of the fused graph.
        out: directory to write.
        method: "qdq-dynamic" or "qdq-static".
        calibration: whose first tokens give the ranges of the activations, for "qdq-static".

    Raises:
        InputError: not a fused graph's directory, or a float16 graph for "qdq-dynamic".
    """
    start = time.monotonic()
    if _holds_float16(load_fused_graph(graph).graph) and method == QDQ_DYNAMIC:
        raise InputError(
            f"{method} measures float32 activations and {graph} has float16: give the float32 graph"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".qdq-") as scratch:
        copied, written = Path(scratch) / "copied", Path(scratch) / "written"
        copied.mkdir()
        written.mkdir()
        for file in graph.glob(f"{MODEL_FILE}*"):  # onnx refuses data files with several hard links
            shutil.copyfile(file, copied / file.name)
        model = load_graph(copied)
        if calibration is not None:
            calibration = calibration.cut_for(model)
        weights, stayed = find_weights(model.graph)
        excluded = [node.name for node in model.graph if _reads(node, stayed)]
        _run(model.graph, copied / MODEL_FILE, written / MODEL_FILE, method, calibration, excluded)
        quantized = load_graph(written)
        save_graph(quantized, out, share_weights=False)
        tensors = [_report(weight, quantized.graph, method) for weight in weights]
    copy_sidecars(graph, out)
    left = {
        weight.name: _reason(weight) for weight, report in zip(weights, tensors, strict=True) if not report
    }
    if left:
        _logger.warning(
            "%s leaves %d weights in float, the experts among them: %s", method, len(left), ", ".join(left)
        )
    return QuantizeReport(
        precision="int8",
        method=method,
        tensors=tuple(report for report in tensors if report),
        stayed_float={
            name: why for name, why in (stayed | left).items() if name in quantized.graph.initializers
        },
        bytes_before=initializer_bytes(model.graph),
        bytes_after=initializer_bytes(quantized.graph),
        seconds=time.monotonic() - start,
    )


def _holds_float16(graph: ir.Graph) -> bool:
    return any(value.dtype is ir.DataType.FLOAT16 for value in graph.initializers.values())


def _run(
    graph: ir.Graph,
    source: Path,
    target: Path,
    method: str,
    calibration: Calibration | None,
    excluded: list[str | None],
) -> None:
    settings: dict[str, Any] = {
        "op_types_to_quantize": _OPERATORS,
        "nodes_to_exclude": excluded,
        "per_channel": True,
        "weight_type": QuantType.QUInt8,
        "use_external_data_format": True,
    }
    with _without_advice():
        if method == QDQ_DYNAMIC:
            quantize_dynamic(source, target, **settings)
        else:
            assert calibration is not None
            reader = _Reader(graph, calibration.limited(_CALIBRATION_TOKENS))
            settings["activation_type"] = QuantType.QUInt8
            quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, **settings)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without what ONNX Runtime advises for any graph: a fused one has it behind it, or breaks by it."""
    root = logging.getLogger()
    root.addFilter(_is_error)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class _Reader(CalibrationDataReader):
    def __init__(self, graph: ir.Graph, calibration: Calibration) -> None:
        self._feeds = iter([graph_inputs(graph, sequence) for sequence in calibration.sequences])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _reads(node: ir.Node, initializers: Container[str | None]) -> bool:
    return any(value is not None and value.name in initializers for value in node.inputs)


def _reason(weight: Weight) -> str:
    operators = ", ".join(sorted({node.op_type for node in weight.users}))
    return f"ONNX Runtime's quantizer has no form of {operators}"


def _report(weight: Weight, graph: ir.Graph, method: str) -> TensorReport | None:
    """What became of a weight; None where it stayed float."""
    if weight.name in graph.initializers:
        return None
    codes, scale, zero = (
        _array(graph, f"{weight.name}_{part}") for part in ("quantized", "scale", "zero_point")
    )
    before = weight.value.const_value
    assert before is not None
    values = np.asarray(before.numpy(), np.float32)
    difference = (codes.astype(np.float32) - zero) * scale - values
    return TensorReport(
        name=weight.name,
        operators=tuple(sorted({node.op_type for node in weight.users})),
        method=method,
        bits=8,
        block_size=weight.inputs if scale.size > 1 else values.size,
        symmetric=not zero.any(),
        bytes_before=weight.nbytes,
        bytes_after=codes.nbytes + scale.nbytes + zero.nbytes,
        relative_error=(float(np.linalg.norm(difference) / np.linalg.norm(values)),),
        fallbacks={},
    )


def _array(graph: ir.Graph, name: str) -> np.ndarray:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())
