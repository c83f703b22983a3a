"""A job per purpose."""

import dagster as dg

from llama4_pipeline.orchestration.materialization import MEASURE_ANEW

pipeline_job = dg.define_asset_job(
    "pipeline",
    selection=dg.AssetSelection.all(),
    description="Every stage for a model, from the checkpoint to the report; what is unchanged is reused.",
)

rebenchmark_job = dg.define_asset_job(
    "rebenchmark",
    selection=dg.AssetSelection.assets("pytorch_baseline", "benchmarks", "benchmark_table", "report"),
    tags=MEASURE_ANEW,
    description="Measures a model's graphs again, though nothing changed, and writes a new table and report.",
)
