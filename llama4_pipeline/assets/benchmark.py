"""The benchmarks asset, and the check that holds it against the nights before."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from llama4_pipeline.builders.measurements import read_measurements
from llama4_pipeline.orchestration.history import Standing, remember
from llama4_pipeline.orchestration.materialization import check_spec, declared, image, materialized, run
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice

if TYPE_CHECKING:
    from llama4_pipeline.metrics.measurement import Measurement

_CHECK = "no_slowdown"
_PROMISE = "No engine is slower than the median of recent nights on this machine. Warns, and blocks nothing."


@dg.asset(**declared("benchmarks"), check_specs=[check_spec("benchmarks", _CHECK, _PROMISE)])
def benchmarks(
    context: dg.AssetExecutionContext, artifacts: ArtifactStore, device: ComputeDevice
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Shows each engine's speed and memory, or why it was not measured, and the time per token night by night."""
    outcome = run(context, artifacts, device)
    measurements = read_measurements(outcome.artifact.directory)
    standing = remember(outcome.artifact, artifacts.history())
    plot = {"nights": image("nights", standing.plot)} if standing.plot else {}
    yield _checked(standing, plot)
    speeds = {
        f"{each.engine} tokens per second": each.decode_tokens_per_second
        for each in measurements
        if each.decode_tokens_per_second is not None
    }
    yield materialized(outcome, engines=_table(measurements), **plot, **speeds)


def _checked(standing: Standing, plot: dict[str, dg.MetadataValue]) -> dg.AssetCheckResult:
    lines = {
        "slower": [each.sentence() for each in standing.slowdowns],
        "compared": [each.sentence() for each in standing.comparisons],
    }
    texts = {name: "\n".join(f"- {line}" for line in found) for name, found in lines.items() if found}
    return dg.AssetCheckResult(
        check_name=_CHECK,
        passed=not standing.slowdowns,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "slowdowns": len(standing.slowdowns),
            **{name: dg.MetadataValue.md(text) for name, text in texts.items()},
            **plot,
        },
    )


def _table(measurements: Sequence["Measurement"]) -> dg.MetadataValue:
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
    return dg.MetadataValue.table(rows)
