"""The gate: a graph passes on if it computes what PyTorch computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.builders.notes import note
from llama4_pipeline.errors import CheckFailed


class GraphRejected(CheckFailed):
    """A graph that does not match PyTorch. The message names layer, length and figure; `facts` holds the report."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Lets the exported graph through, with the proof beside it.

    Args:
        inputs: `checkpoint` and `exported_graph`.
        parameters: `validation`, keyword arguments of `validate_graph`.
        out: The directory to fill.

    Returns:
        The validation's report.

    Raises:
        GraphRejected: It does not match PyTorch.
    """
    for file in sorted(inputs["exported_graph"].iterdir()):
        if file.is_file() and file.name != "manifest.json":
            link_or_copy(file, out / file.name)
    return check_graph(inputs["checkpoint"], out, parameters["validation"])


def check_graph(checkpoint: Path, graph: Path, validation: Mapping[str, Any]) -> dict[str, Any]:
    """Validates a graph directory and notes the result in it.

    Raises:
        GraphRejected: It does not match PyTorch.
    """
    from llama4_pipeline.graph.validate import validate_within_memory
    from llama4_pipeline.graph.validate.picture import draw_errors
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    report = validate_within_memory(Checkpoint.open(checkpoint), graph, **validation)
    facts = {"validation": report.to_json()}
    if not report.passed:
        raise GraphRejected(f"the graph does not match PyTorch: {report.failures[0]}", facts)
    note(graph, "validation.md", report.to_markdown())
    note(graph, "validation.png", draw_errors(report))
    return facts
