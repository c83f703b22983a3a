"""The benchmarks asset."""

import dagster as dg

from llama4_pipeline.builders.measurements import read_measurements
from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("benchmarks"))
def benchmarks(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows each engine's speed and memory, or why it was not measured; tokens per second are plotted over time."""
    outcome = run(context, artifacts, device)
    measurements = read_measurements(outcome.artifact.directory)
    rows = [
        dg.TableRecord(
            {
                "engine": each.engine,
                "tokens per second": each.decode_tokens_per_second,
                "peak memory bytes": each.peak_memory_bytes,
                "not measured because": each.unavailable,
            }
        )
        for each in measurements
    ]
    speeds = {
        f"{each.engine} tokens per second": each.decode_tokens_per_second
        for each in measurements
        if each.decode_tokens_per_second is not None
    }
    return materialized(outcome, engines=dg.MetadataValue.table(rows), **speeds)
