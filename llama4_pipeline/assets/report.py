"""The benchmark_table and report assets."""

import os

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, image, materialized, run
from llama4_pipeline.orchestration.resources import PAGES_VARIABLE, ArtifactStore, ComputeDevice


@dg.asset(**declared("benchmark_table"))
def benchmark_table(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the table."""
    outcome = run(context, artifacts, device)
    table = outcome.artifact.directory / "benchmark.md"
    return materialized(
        outcome,
        table=dg.MetadataValue.md(table.read_text(encoding="utf-8")),
        **{"dagster/row_count": outcome.artifact.facts["rows"]},
    )


@dg.asset(**declared("report"))
def report(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the plots, and a link to the page."""
    outcome = run(context, artifacts, device)
    directory = outcome.artifact.directory
    plots = {
        name: image(name, (directory / f"{name}.png").read_bytes())
        for name in outcome.artifact.facts["plots"]
    }
    served = os.environ.get(PAGES_VARIABLE)
    page = (
        dg.MetadataValue.url(f"{served}/{context.partition_key}")
        if served
        else dg.MetadataValue.path(directory / "report.html")
    )
    return materialized(outcome, page=page, **plots)
