"""The definitions load, quickly, and say of each asset what the table of stages says."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from llama4_pipeline.catalog import USER_CATALOG_VARIABLE, load_catalog
from llama4_pipeline.definitions import defs
from llama4_pipeline.orchestration.jobs import pipeline_job, rebenchmark_job
from llama4_pipeline.orchestration.materialization import MEASURE_ANEW
from llama4_pipeline.orchestration.schedules import NIGHTLY_VARIABLE
from llama4_pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]


def test_the_definitions_are_loadable() -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_stage_is_an_asset_with_its_inputs() -> None:
    graph = defs.resolve_asset_graph()
    assert {key.path[-1] for key in graph.get_all_asset_keys()} == set(STAGES)
    for stage in STAGES.values():
        node = graph.get(dg.AssetKey(stage.name))
        assert {key.path[-1] for key in node.parent_keys} == set(stage.inputs)
        assert node.partitions_def.get_partition_keys() == list(load_catalog())
        assert node.description.startswith(f"{stage.description}\n\nNeeds ")
        assert all(f"| {name} | " in node.description for name in load_catalog())
        assert node.code_version
        assert (node.pools == {"gpu"}) == stage.may_use_gpu
        checks = ["no_slowdown"] if stage.name == "benchmarks" else [stage.check] if stage.check else []
        assert [key.name for key in node.check_keys] == checks


def test_the_jobs_cover_what_they_say() -> None:
    everything = defs.resolve_job_def(pipeline_job.name)
    assert len(everything.asset_layer.selected_asset_keys) == len(STAGES)
    again = defs.resolve_job_def(rebenchmark_job.name)
    assert {key.path[-1] for key in again.asset_layer.selected_asset_keys} == {
        "pytorch_baseline",
        "benchmarks",
        "benchmark_table",
        "report",
    }
    assert again.tags.items() >= MEASURE_ANEW.items()


def test_the_night_measures_every_nightly_model_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = defs.resolve_schedule_def("nightly")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    requests = _tick(schedule).run_requests or []
    assert [request.partition_key for request in requests] == [
        model.name for model in load_catalog().values() if model.nightly
    ]
    assert all(request.tags.items() >= MEASURE_ANEW.items() for request in requests)

    new = '[models.new]\nsource = "hub:a/b"\nmax_context = 512\nnightly = true\ndescription = "New"\n'
    (tmp_path / "catalog.toml").write_text(new)
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(tmp_path / "catalog.toml"))
    assert _tick(schedule).run_requests == requests, "a model that is not loaded yet stops no other"

    (tmp_path / "catalog.toml").write_text("[models.tiny]\nnightly = false\n")
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(tmp_path / "catalog.toml"))
    assert "nightly = true" in str(_tick(schedule).skip_message)


def test_a_time_of_night_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NIGHTLY_VARIABLE, "half past two")
    command = [sys.executable, "-m", "llama4_pipeline.cli", "run", "--model", "tiny"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert run.stderr.startswith(f"llama4-pipeline: {NIGHTLY_VARIABLE}='half past two' is no time")


def _tick(schedule: dg.ScheduleDefinition) -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(
            instance=instance,
            repository_def=defs.get_repository_def(),
            scheduled_execution_time=datetime(2026, 11, 23, 2, tzinfo=UTC),
        )
        return schedule.evaluate_tick(context)


def test_neither_loading_nor_a_hit_imports_a_heavy_library() -> None:
    program = (
        "import sys, llama4_pipeline.definitions, llama4_pipeline.metrics.measurement\n"
        "from llama4_pipeline.device import find_device\n"
        "find_device().machine()\n"
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'pandas', 'matplotlib') "
        "if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == "[]\n"


def test_dagster_validates_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "Validation successful for code location llama4_pipeline" in run.stderr + run.stdout
