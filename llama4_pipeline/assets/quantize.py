"""The fp16_graph, int8_graph and int4_graph assets."""

from typing import Any

import dagster as dg

from llama4_pipeline.orchestration.materialization import declared, image, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice
from llama4_pipeline.pipeline import Outcome


@dg.asset(**declared("fp16_graph"))
def fp16_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the size before and after, and where it cannot run."""
    outcome = run(context, artifacts, device)
    report = outcome.artifact.facts["convert"]
    return materialized(
        outcome,
        **_sizes(report),
        no_cpu_kernel=report["no_cpu_kernel"],
    )


@dg.asset(**declared("int8_graph"))
def int8_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the size before and after, and what stayed in float and why."""
    return _quantized(run(context, artifacts, device))


@dg.asset(**declared("int4_graph"))
def int4_graph(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> dg.MaterializeResult:
    """Shows the size before and after, and what stayed in float and why."""
    return _quantized(run(context, artifacts, device))


def _quantized(outcome: Outcome) -> dg.MaterializeResult:
    report = outcome.artifact.facts["quantize"]
    worst = max(max(tensor["relative_error"]) for tensor in report["tensors"])
    shown: dict[str, Any] = {}
    if coverage := [_coverage(tensor) for tensor in report["tensors"] if len(tensor["tokens"]) > 1]:
        shown["calibration_tokens_by_expert"] = dg.MetadataValue.table(coverage)
    if report.get("sensitivity"):
        shown |= _sensitivity(report)
    return materialized(
        outcome,
        **shown,
        method=report["method"],
        quantized_tensors=len(report["tensors"]),
        largest_relative_error=worst,
        stayed_float=report["stayed_float"],
        **_sizes(report),
    )


def _sensitivity(report: dict[str, Any]) -> dict[str, dg.MetadataValue]:
    from llama4_pipeline.report.plots import to_png
    from llama4_pipeline.report.sensitivity import draw_sensitivity

    figure = draw_sensitivity(report)
    return {"sensitivity": image("sensitivity", to_png(figure))} if figure else {}


def _coverage(tensor: dict[str, Any]) -> dg.TableRecord:
    """The calibration tokens that each expert of a stack saw, and which were too few."""
    starved = ", ".join(map(str, tensor["fallbacks"]))
    return dg.TableRecord(
        {
            "experts": tensor["name"],
            "fewest": min(tensor["tokens"]),
            "tokens by expert": ", ".join(map(str, tensor["tokens"])),
            "starved": starved,
        }
    )


def _sizes(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "bytes_before": report["bytes_before"],
        "bytes_after": report["bytes_after"],
        "times_smaller": report["bytes_before"] / report["bytes_after"],
    }
