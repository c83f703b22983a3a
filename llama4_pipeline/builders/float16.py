"""The graph with half the bits a weight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Converts the optimized graph to float16.

    Args:
        inputs: `optimized_graph`.
        parameters: None.
        out: The directory to fill.

    Returns:
        Sizes and what stayed in float32.
    """
    from llama4_pipeline.graph.convert import convert_to_float16

    return {"convert": convert_to_float16(inputs["optimized_graph"], out).to_json()}
