"""The benchmarks: every engine on the same prompts, in turns, each in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.builders.measurements import read_measurements, request, write_measurements
from llama4_pipeline.builders.quality import FIGURES, with_quality

if TYPE_CHECKING:
    from llama4_pipeline.metrics.measurement import Measurement

_QUANTIZED = ("int8_graph", "int4_graph")


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measures PyTorch eager, ONNX Runtime in every precision, and TensorRT-LLM.

    PyTorch's speed is taken again, in turns with the others, so that ratios hold; its quality is the
    baseline's.

    Args:
        inputs: `checkpoint`, `datasets`, `pytorch_baseline` and the graphs.
        parameters: `model`, `device`, `dtype`, `benchmark` and `trained`.
        out: The directory to fill.

    Returns:
        Engines that were left out, with the reason.

    Raises:
        CheckFailed: A measuring process died.
    """
    from llama4_pipeline.metrics.isolated import measure_interleaved

    graphs = ("fp16_graph" if parameters["device"] == "cuda" else "optimized_graph", *_QUANTIZED)
    requests = [
        request("pytorch", parameters, checkpoint=inputs["checkpoint"]),
        *(request("onnxruntime", parameters, graph=inputs[name]) for name in graphs),
        request("tensorrt-llm", parameters, checkpoint=inputs["checkpoint"]),
    ]
    pytorch, *fused, tensorrt = measure_interleaved(requests)
    [baseline] = read_measurements(inputs["pytorch_baseline"])
    judged = [
        with_quality(measured, parameters, inputs["datasets"], inputs["checkpoint"], inputs[name])
        for measured, name in zip(fused, graphs, strict=True)
    ]
    rows = [_quality_of(baseline, pytorch), *judged, tensorrt]
    write_measurements(rows, out)
    return {"left_out": {row.engine: row.unavailable for row in rows if row.unavailable}}


def _quality_of(baseline: "Measurement", measured: "Measurement") -> "Measurement":
    return measured.model_copy(update={name: getattr(baseline, name) for name in FIGURES})
