"""The exported graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Exports the checkpoint as a portable ONNX directory.

    Args:
        inputs: `checkpoint`.
        parameters: `opset` and `max_context`.
        out: The directory to fill.

    Returns:
        The export's report.
    """
    from llama4_pipeline.graph.export import export_graph
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(inputs["checkpoint"])
    report = export_graph(checkpoint, out, opset=parameters["opset"], max_context=parameters["max_context"])
    return {"export": report.to_json()}
