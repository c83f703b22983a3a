"""The graphs with integer weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.files import CALIBRATION, SENSITIVITY


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Quantizes the optimized graph to integers.

    Args:
        inputs: `checkpoint`, `optimized_graph` and `datasets`, whose calibration text the methods that ask for it
            look at.
        parameters: `precision` ("int8" or "int4"), `method` and `device`, whose kernels are to run it.
        out: The directory to fill.

    Returns:
        Sizes, errors by tensor, and what stayed in float.
    """
    from llama4_pipeline.graph.by_method import quantize
    from llama4_pipeline.graph.quantize.calibration_text import read_calibration
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.methods import METHODS

    graph, method = inputs["optimized_graph"], parameters["method"]
    terms = METHODS[method]
    calibration = None
    if terms.needs_text:
        calibration = read_calibration(inputs["datasets"] / CALIBRATION, graph)
    report = quantize(
        graph,
        out,
        precision=parameters["precision"],
        method=method,
        calibration=calibration,
        checkpoint=Checkpoint.open(inputs["checkpoint"]) if terms.checkpoint else None,
        device=parameters["device"],
    )
    facts = report.to_json()
    if figures := {name: facts[name] for name in ("sensitivity", "expert_sensitivity") if facts.get(name)}:
        (out / SENSITIVITY).write_text(json.dumps(figures, indent=1, allow_nan=False))
    return {"quantize": facts}
