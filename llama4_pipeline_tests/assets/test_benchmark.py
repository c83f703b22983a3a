"""The check of the benchmarks, over nights that the history holds."""

from datetime import datetime, timedelta

import dagster as dg
import pytest

from llama4_pipeline.artifacts.location import history_directory
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.assets import benchmark
from llama4_pipeline.builders.measurements import write_measurements
from llama4_pipeline.pipeline import Outcome
from llama4_pipeline.report.history import append
from llama4_pipeline_tests.assets.conftest import Materialize, materialized
from llama4_pipeline_tests.report.conftest import invent

_ENGINE = ("ONNX Runtime INT4", "int4")


@pytest.mark.parametrize(("milliseconds", "usual"), [(7.1, True), (9.0, False)])
def test_a_slow_night_is_warned_of_and_blocks_nothing(
    materialize: Materialize, store: Store, monkeypatch: pytest.MonkeyPatch, milliseconds: float, usual: bool
) -> None:
    recipe = Recipe(stage="benchmarks", model="tiny", code_version="1", parameters={"trained": True})
    rows = [invent(*_ENGINE, milliseconds, 1)]
    artifact, _ = store.get_or_make(recipe, lambda out: write_measurements(rows, out))
    tonight = datetime.fromisoformat(artifact.manifest.created)
    for night in range(1, 4):
        earlier = {"created": (tonight - timedelta(night)).isoformat(), "digest": f"{night:064}"}
        manifest = artifact.manifest.model_copy(update=earlier)
        append(history_directory(str(store.root)), [invent(*_ENGINE, 7.0, 1)], manifest)
    monkeypatch.setattr(benchmark, "run", lambda *_: Outcome(artifact, reused=False, reason="never built"))
    result = materialize("benchmarks")
    [check] = result.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (usual, dg.AssetCheckSeverity.WARN)
    assert check.metadata["slowdowns"].value == (0 if usual else 2)
    assert ("slower" in check.metadata) is not usual
    assert result.success and materialized(result) == ["benchmarks"]
