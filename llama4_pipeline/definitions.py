"""The whole pipeline on one screen: assets with their checks, jobs, schedule, sensor, resources."""

import dagster as dg

from llama4_pipeline.assets.baseline import pytorch_baseline
from llama4_pipeline.assets.benchmark import benchmarks
from llama4_pipeline.assets.checkpoint import checkpoint
from llama4_pipeline.assets.datasets import datasets
from llama4_pipeline.assets.export import exported_graph
from llama4_pipeline.assets.optimize import optimized_graph
from llama4_pipeline.assets.quantize import fp16_graph, int4_graph, int8_graph
from llama4_pipeline.assets.report import benchmark_table, report
from llama4_pipeline.assets.simplify import simplified_graph
from llama4_pipeline.assets.tradeoff import quantization_tradeoff
from llama4_pipeline.assets.validate import validated_graph
from llama4_pipeline.orchestration.executors import chosen_executor
from llama4_pipeline.orchestration.jobs import pipeline_job, rebenchmark_job
from llama4_pipeline.orchestration.recovery import recovery
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice
from llama4_pipeline.orchestration.schedules import nightly

defs = dg.Definitions(
    assets=[
        checkpoint,
        datasets,
        pytorch_baseline,
        exported_graph,
        validated_graph,
        simplified_graph,
        optimized_graph,
        fp16_graph,
        int8_graph,
        int4_graph,
        quantization_tradeoff,
        benchmarks,
        benchmark_table,
        report,
    ],
    jobs=[pipeline_job, rebenchmark_job],
    schedules=[nightly],
    sensors=[recovery],
    resources={"artifacts": ArtifactStore(), "device": ComputeDevice()},
    executor=chosen_executor(),
)
