"""The bridge between a stage and its asset: declaration, run, metadata, and the gate."""

import base64
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.builders.notes import NOTES
from llama4_pipeline.builders.validate import GraphRejected
from llama4_pipeline.catalog import find_model
from llama4_pipeline.orchestration.descriptions import describe
from llama4_pipeline.orchestration.partitions import MODELS
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice
from llama4_pipeline.pipeline import Outcome, run_stage, stage_code_version
from llama4_pipeline.stages import STAGES

GPU_POOL = "gpu"
MEASURE_TAG = "llama4_pipeline/measure"
MEASURE_ANEW = {MEASURE_TAG: "anew"}
"""Run tags under which measurements are repeated whatever their key says."""

Metadata = Mapping[str, Any]
GateEvents = Iterator[dg.AssetCheckResult | dg.MaterializeResult]


def declared(name: str) -> dict[str, Any]:
    """The arguments of `@dg.asset` that the table of stages decides."""
    stage = STAGES[name]
    arguments: dict[str, Any] = {
        "name": name,
        "description": describe(stage),
        "deps": list(stage.inputs),
        "partitions_def": MODELS,
        "group_name": stage.group,
        "kinds": set(stage.kinds),
        "code_version": stage_code_version(stage),
        "tags": {"measurement": ""} if stage.measures else {},
        "pool": GPU_POOL if stage.may_use_gpu else None,
    }
    if stage.check:
        promise = (
            "onnx.checker passes; every layer and the logits agree with PyTorch, and greedy text where both models "
            "fit into memory."
        )
        gate = check_spec(name, stage.check, promise, blocking=True)
        arguments |= {"output_required": False, "check_specs": [gate]}
    return arguments


def check_spec(asset: str, name: str, description: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    """A check of an asset, with a result for each model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, blocking=blocking, partitions_def=MODELS
        )


def run(context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice) -> Outcome:
    """Runs the stage of the asset for the partition, or finds its artifact in the store."""
    stage = STAGES[context.asset_key.path[-1]]
    model = find_model(context.partition_key)
    found = device.find()
    if stage.may_use_gpu:
        context.log.info(f"device: {found.name} ({found.reason})")
    anew = stage.measures and context.run.tags.get(MEASURE_TAG) == MEASURE_ANEW[MEASURE_TAG]
    return run_stage(stage, model, artifacts.open(), found, anew)


def materialized(outcome: Outcome, **metadata: Any) -> dg.MaterializeResult:
    """The result of an asset: the content digest as its data version, and what a person wants to see."""
    artifact = outcome.artifact
    manifest = artifact.manifest
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.digest),
        metadata={
            "reused": outcome.reused,
            "why": outcome.reason,
            **metadata,
            "bytes": manifest.bytes,
            "seconds_to_build": manifest.seconds,
            "path": dg.MetadataValue.path(artifact.place),
            "key": manifest.key,
            "created": dg.MetadataValue.text(manifest.created),
        },
    )


def gated(
    context: dg.AssetExecutionContext,
    artifacts: ArtifactStore,
    device: ComputeDevice,
    describe: Callable[[Artifact], Metadata],
) -> GateEvents:
    """Runs a stage with a check: its result first, and a materialization only if it passed.

    A blocking check alone holds within one run. Here a graph that fails is neither published nor
    materialized, so that a later run of what is downstream has nothing new to start from.
    """
    check = STAGES[context.asset_key.path[-1]].check
    try:
        outcome = run(context, artifacts, device)
    except GraphRejected as rejected:
        failures = [failure["message"] for failure in rejected.facts["validation"]["failures"]]
        figures = {
            "reason": str(rejected),
            **_validation_figures(rejected.facts),
            "all_failures": dg.MetadataValue.md("\n".join(f"- {failure}" for failure in failures)),
        }
        yield dg.AssetCheckResult(passed=False, check_name=check, metadata=figures)
        raise
    figures = _validation_figures(outcome.artifact.facts) | _validation_notes(outcome.artifact)
    yield dg.AssetCheckResult(passed=True, check_name=check, metadata=figures)
    yield materialized(outcome, **describe(outcome.artifact))


def image(name: str, png: bytes) -> dg.MetadataValue:
    """A picture as Markdown, for the asset's page."""
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _validation_figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    report = facts["validation"]
    logits = [row for row in report["rows"] if row["block"] == "logits"]
    return {
        "cases": report["cases"],
        "compared_tokens": report["compared_tokens"],
        "least_layer_cosine": min(row["cosine"] for row in report["rows"]),
        "logits_cosine": min((row["cosine"] for row in logits), default=None),
        "longest": max(report["lengths"]),
        "failures": len(report["failures"]),
    }


def _validation_notes(artifact: Artifact) -> dict[str, dg.MetadataValue]:
    return {
        "errors": image("validation", artifact.read(f"{NOTES}/validation.png")),
        "report": dg.MetadataValue.md(artifact.read(f"{NOTES}/validation.md").decode()),
    }
