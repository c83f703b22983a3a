"""The validated_graph asset: the gate between export and everything after it."""

from typing import Any

import dagster as dg

from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.orchestration.materialization import GateEvents, declared, gated
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("validated_graph"))
def validated_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> GateEvents:
    """Shows over how many cases and tokens graph and PyTorch agree, and how well."""
    yield from gated(context, artifacts, device, _describe)


def _describe(artifact: Artifact) -> dict[str, Any]:
    report = artifact.facts["validation"]
    return {
        "cases": report["cases"],
        "compared_tokens": report["compared_tokens"],
        "lengths": report["lengths"],
        "batches": report["batches"],
        "least_layer_cosine": min(row["cosine"] for row in report["rows"]),
        "greedy_tokens_identical": sum(row["identical"] for row in report["greedy"]),
    }
