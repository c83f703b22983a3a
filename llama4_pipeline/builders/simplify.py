"""The simplified graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.validate import check_graph


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Simplifies the validated graph and validates the result.

    Args:
        inputs: `checkpoint` and `validated_graph`.
        parameters: `validation`, keyword arguments of `validate_graph`.
        out: The directory to fill.

    Returns:
        What was removed, and the validation's report.

    Raises:
        GraphRejected: The result does not match PyTorch.
    """
    from llama4_pipeline.graph.simplify import simplify_graph

    report = simplify_graph(inputs["validated_graph"], out)
    return {"simplify": report.to_json()} | check_graph(inputs["checkpoint"], out, parameters["validation"])
