"""The datasets asset."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("datasets"))
def datasets(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the samples of each data set, where they come from, and how the calibration text reaches experts."""
    outcome = run(context, artifacts, device)
    sets = outcome.artifact.facts["datasets"]
    rows = [
        dg.TableRecord({"data set": name, "samples": each["samples"], "source": each["source"]})
        for name, each in sets.items()
    ]
    return materialized(
        outcome,
        data_sets=dg.MetadataValue.table(rows),
        tokens_by_expert=outcome.artifact.facts["tokens_by_expert"],
        starved_experts=outcome.artifact.facts["starved_experts"],
    )
