"""The quantization_tradeoff asset."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("quantization_tradeoff"))
def quantization_tradeoff(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows what each method that was compared loses and weighs, and what it took to make; `report` draws it."""
    outcome = run(context, artifacts, device)
    rows = [
        dg.TableRecord({"method": name, **figures})
        for name, figures in outcome.artifact.facts["methods"].items()
    ]
    return materialized(outcome, methods=dg.MetadataValue.table(rows) if rows else "none compared")
