"""The pytorch_baseline asset."""

import dagster as dg

from llama4_pipeline.builders.measurements import read_measurements
from llama4_pipeline.orchestration.materialization import declared, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice


@dg.asset(**declared("pytorch_baseline"))
def pytorch_baseline(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the figures that the migration starts from; plain numbers, which the page plots over time."""
    outcome = run(context, artifacts, device)
    [measured] = read_measurements(outcome.artifact.directory)
    figures = {
        "decode_latency_ms_p50": measured.decode_latency_ms and measured.decode_latency_ms.p50,
        "decode_latency_ms_p99": measured.decode_latency_ms and measured.decode_latency_ms.p99,
        "decode_tokens_per_second": measured.decode_tokens_per_second,
        "time_to_first_token_ms": measured.time_to_first_token_ms,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "perplexity": measured.perplexity,
    }
    return materialized(outcome, **{name: value for name, value in figures.items() if value is not None})
