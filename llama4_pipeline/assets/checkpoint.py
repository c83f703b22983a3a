"""The checkpoint asset."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("checkpoint"))
def checkpoint(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the size of the model and, where it was trained here, how good it became."""
    outcome = run(context, artifacts, device)
    facts = outcome.artifact.facts
    quality = facts.get("training", {}).get("quality", {})
    return materialized(
        outcome,
        parameters=facts["parameters"],
        active_parameters=facts["active_parameters"],
        layers=facts["layers"],
        experts=facts["experts"],
        **{name: value for name, value in quality.items() if isinstance(value, int | float)},
    )
