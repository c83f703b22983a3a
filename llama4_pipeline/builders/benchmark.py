"""The benchmarks: every engine on the same prompts, one after the other, each in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.builders.measurements import read_measurements, write_measurements
from llama4_pipeline.builders.quality import FIGURES, with_quality
from llama4_pipeline.builders.requests import request

if TYPE_CHECKING:
    from llama4_pipeline.metrics.measurement import Measurement

_QUANTIZED = ("int8_graph", "int4_graph")


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measures PyTorch eager, ONNX Runtime in every precision, and TensorRT-LLM.

    PyTorch's speed is taken again, right before the others, so that ratios hold; its quality is the
    baseline's.

    Args:
        inputs: `checkpoint`, `pytorch_baseline`, the graphs that run on the device and, of trained weights,
            `datasets`.
        parameters: `model`, `device`, `benchmark`, `trained` and `max_context`.
        out: The directory to fill.

    Returns:
        As `write_measurements`.

    Raises:
        CheckFailed: A measuring process died.
    """
    from llama4_pipeline.metrics.isolated import measure_isolated
    from llama4_pipeline.progress import Progress

    graphs = (float_graph(parameters["device"]), *_QUANTIZED)
    requests = [
        request("pytorch", parameters, checkpoint=inputs["checkpoint"]),
        *(request("onnxruntime", parameters, graph=inputs[name]) for name in graphs),
        request("tensorrt-llm", parameters, checkpoint=inputs["checkpoint"]),
    ]
    measured = []
    with Progress("benchmark", total=len(requests), unit="engines") as progress:
        for asked in requests:
            measured.append(measure_isolated(asked))
            progress.advance(note=asked.engine)
    pytorch, *fused, tensorrt = measured
    [baseline] = read_measurements(inputs["pytorch_baseline"])
    judged = [with_quality(each, parameters, inputs, name) for each, name in zip(fused, graphs, strict=True)]
    rows = [_quality_of(baseline, pytorch), *judged, tensorrt]
    return write_measurements(rows, out)


def float_graph(device: str) -> str:
    """The stage whose graph is measured beside the quantized ones on a device."""
    return "fp16_graph" if device == "cuda" else "optimized_graph"


def _quality_of(baseline: "Measurement", measured: "Measurement") -> "Measurement":
    return measured.model_copy(update={name: getattr(baseline, name) for name in FIGURES})
