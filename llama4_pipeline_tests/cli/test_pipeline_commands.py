"""Commands about the catalog and the store, on a store of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama4_pipeline import cli
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.stages import STAGES


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(ARTIFACTS_VARIABLE, str(tmp_path / "artifacts"))
    return Store(tmp_path / "artifacts")


def keep(store: Store, content: str) -> Path:
    """Makes an artifact of the stage `checkpoint`; an earlier one is no longer the latest."""

    def make(out: Path) -> dict[str, Any]:
        (out / "weights").write_text(content)
        return {}

    recipe = Recipe(stage="checkpoint", model="tiny", code_version=content)
    artifact, _ = store.get_or_make(recipe, make)
    return artifact.directory


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def test_models_lists_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tiny ") for line in lines)
    assert cli.main(["models", "--json"]) == 0
    models = {model["name"]: model for model in last_json(capsys)["models"]}
    assert models["mini"]["trained"] is False
    assert models["mini"]["parameters"] == pytest.approx(1.0e9, rel=0.03)
    assert set(models["mini"]["needs"]) == set(STAGES)


def test_plan_says_what_would_run_and_why(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    keep(store, "made by other code")
    assert cli.main(["plan", "--model", "tiny", "--json"]) == 0
    stages = {stage["stage"]: stage for stage in last_json(capsys)["stages"]}
    assert list(stages) == list(STAGES)
    assert "code changed" in stages["checkpoint"]["reason"]
    assert stages["datasets"]["reason"] == "never built"
    assert all(stage["state"] == "run" for stage in stages.values())


def test_gc_says_what_it_freed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = keep(store, "old"), keep(store, "newer")
    assert cli.main(["store", "gc", "--json"]) == 0
    assert last_json(capsys)["artifacts"] == 1
    assert not old.exists()
    assert new.exists()


def test_verify_finds_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    directory = keep(store, "sound")
    assert cli.main(["store", "verify"]) == 0
    (directory / "weights").write_text("souND")
    capsys.readouterr()
    assert cli.main(["store", "verify", "--json"]) == 1
    assert "weights" in last_json(capsys)["damaged"][str(directory)]


def test_interrupted_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dagster import DagsterExecutionInterruptedError

    from llama4_pipeline.orchestration import local_run

    def interrupted(model: str) -> None:
        raise DagsterExecutionInterruptedError

    monkeypatch.setattr(local_run, "run_pipeline", interrupted)
    assert cli.main(["run", "--model", "tiny"]) == 130
    assert capsys.readouterr().err.strip() == "llama4-pipeline: interrupted"
