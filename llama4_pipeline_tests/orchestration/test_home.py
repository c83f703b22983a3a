"""Which Dagster home and which store a command uses."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import yaml

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE, artifacts_root
from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.home import dagster_home, open_instance

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv(ARTIFACTS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_home_is_made_where_there_is_none(tmp_path: Path) -> None:
    with dagster_home() as home:
        assert home == tmp_path / ".dagster_home"
        assert os.environ["DAGSTER_HOME"] == str(home)
        assert yaml.safe_load((home / "dagster.yaml").read_text())["telemetry"] == {"enabled": False}
        assert artifacts_root() == str(tmp_path / "artifacts"), "the same that `plan` and `store` see"
    assert "DAGSTER_HOME" not in os.environ and ARTIFACTS_VARIABLE not in os.environ


def test_a_home_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / ".dagster_home").touch()
    with pytest.raises(InputError, match=r"\.dagster_home cannot be written .*: set DAGSTER_HOME to"):
        dagster_home().__enter__()


def test_a_directory_with_settings_is_a_home(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("")
    with dagster_home() as home:
        assert home == tmp_path


def test_two_commands_open_a_home_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = threading.Lock()

    def makes_databases() -> bool:
        alone = making.acquire(blocking=False)
        time.sleep(0.2)
        if alone:
            making.release()
        return alone

    monkeypatch.setattr(dg.DagsterInstance, "get", makes_databases)
    with ThreadPoolExecutor(2) as commands:
        assert all(commands.map(open_instance, [tmp_path, tmp_path]))
    assert list(tmp_path.iterdir()) == []


def test_the_variable_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=r"DAGSTER_HOME is .*: let it be the absolute path of a directory"):
        dagster_home().__enter__()
    (tmp_path / "home").mkdir()
    with dagster_home() as home:
        assert home == tmp_path / "home"
        assert artifacts_root() == str(home / "artifacts")


def test_the_store_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS_VARIABLE, "on/another/disk")
    assert artifacts_root() == str(tmp_path / "on" / "another" / "disk")
    monkeypatch.setenv(ARTIFACTS_VARIABLE, "s3://bucket/prefix")
    assert artifacts_root() == "s3://bucket/prefix"


def test_the_settings_of_the_project_are_what_is_promised() -> None:
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"]["pools"]["default_limit"] == 1
    assert settings["run_monitoring"]["enabled"] is True
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False
