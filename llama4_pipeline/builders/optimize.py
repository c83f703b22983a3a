"""The optimized graph: the fused form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.validate import check_graph


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Fuses the simplified graph and validates the result.

    Args:
        inputs: `checkpoint` and `simplified_graph`.
        parameters: `validation`, keyword arguments of `validate_graph`.
        out: The directory to fill.

    Returns:
        How often each fusion fired, and the validation's report.

    Raises:
        GraphRejected: The result does not match PyTorch.
    """
    from llama4_pipeline.graph.fuse import fuse_graph

    report = fuse_graph(inputs["simplified_graph"], out)
    return {"fuse": report.to_json()} | check_graph(inputs["checkpoint"], out, parameters["validation"])
