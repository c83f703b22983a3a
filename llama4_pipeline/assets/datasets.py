"""The datasets asset."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("datasets"))
def datasets(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the number of samples of each data set and where they come from."""
    outcome = run(context, artifacts, device)
    sets = outcome.artifact.facts["datasets"]
    rows = [
        dg.TableRecord({"data set": name, "samples": each["samples"], "source": each["source"]})
        for name, each in sets.items()
    ]
    return materialized(outcome, data_sets=dg.MetadataValue.table(rows))
