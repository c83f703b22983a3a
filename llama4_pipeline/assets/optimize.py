"""The optimized_graph asset."""

from typing import Any

import dagster as dg

from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.orchestration.materialization import GateEvents, declared, gated
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("optimized_graph"))
def optimized_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> GateEvents:
    """Shows how often each fusion fired; a result that does not match PyTorch is not published."""
    yield from gated(context, artifacts, device, _describe)


def _describe(artifact: Artifact) -> dict[str, Any]:
    report = artifact.facts["fuse"]
    return {
        "fusions": report["fired"],
        "nodes_before": sum(report["nodes_before"].values()),
        "nodes": sum(report["nodes_after"].values()),
        "nodes_by_operator": report["nodes_after"],
    }
