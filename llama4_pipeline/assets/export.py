"""The exported_graph asset."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("exported_graph"))
def exported_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the opset, the nodes by operator and the size of the weights."""
    outcome = run(context, artifacts, device)
    report = outcome.artifact.facts["export"]
    return materialized(
        outcome,
        opset=report["opset"],
        nodes=sum(report["nodes"].values()),
        nodes_by_operator=report["nodes"],
        functions=report["functions"],
        parameters=report["parameters"],
        weight_bytes=report["weight_bytes"],
        trace_seconds=report["trace_seconds"],
    )
