"""A local checkpoint becomes a partition while the UI runs: a table in the user's catalog, and a reload."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE
from llama4_pipeline_tests.orchestration.dagster_processes import ROOT, DagsterProcesses
from llama4_pipeline_tests.ports import free_port

Ask = Callable[[str], dict[str, Any]]
_TABLE = """
[models.{name}]
description = "Mine"
source = "local:{directory}"
max_context = 64
benchmark = {{ prompt_tokens = 8, new_tokens = 4 }}
"""
_PARTITIONS = '{ assetNodeOrError(assetKey: {path: ["checkpoint"]}) { ... on AssetNode { partitionKeys } } }'
_RELOAD = 'mutation { reloadRepositoryLocation(repositoryLocationName: "llama4_pipeline") { __typename } }'


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "models.toml"
    file.write_text("")
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(file))
    return file


@pytest.fixture
def dagster(catalog: Path, tmp_path: Path) -> DagsterProcesses:
    """A home, with the user's catalog and a store beside it."""
    settings = {ARTIFACTS_VARIABLE: str(tmp_path / "artifacts")}
    return DagsterProcesses(tmp_path / "home", ROOT / "dagster.yaml", settings)


@pytest.fixture
def ask(dagster: DagsterProcesses) -> Iterator[Ask]:
    """A running UI, to be asked over GraphQL as its pages do."""
    port = str(free_port())
    command = [
        sys.executable,
        "-m",
        "dagster_webserver",
        "-w",
        "workspace.yaml",
        "-h",
        "127.0.0.1",
        "-p",
        port,
    ]
    server = subprocess.Popen(
        command, cwd=ROOT, env=dagster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answer(query: str) -> dict[str, Any]:
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            data: dict[str, Any] = json.load(response)["data"]
            return data

    try:
        while server.poll() is None:
            try:
                answer("{ version }")
                break
            except OSError:
                time.sleep(0.2)
        yield answer
    finally:
        dagster.stop()
        server.wait()


def test_a_checkpoint_in_the_users_catalog_becomes_a_partition(
    ask: Ask, catalog: Path, tiny_random_checkpoint: Path
) -> None:
    def partitions() -> list[str]:
        keys: list[str] = ask(_PARTITIONS)["assetNodeOrError"]["partitionKeys"]
        return keys

    assert "tiny" in partitions() and "mine" not in partitions()
    catalog.write_text(_TABLE.format(name="mine", directory=tiny_random_checkpoint))
    assert ask(_RELOAD)["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
    assert partitions()[-1] == "mine"


def test_the_partition_of_a_local_checkpoint_holds_its_weights(
    dagster: DagsterProcesses, catalog: Path, tiny_random_checkpoint: Path
) -> None:
    catalog.write_text(_TABLE.format(name="mine", directory=tiny_random_checkpoint))
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "llama4_pipeline.definitions"]
    command += ["--select", "checkpoint", "--partition", "mine"]
    done = subprocess.run(command, cwd=ROOT, env=dagster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = Store(Path(dagster.environment[ARTIFACTS_VARIABLE])).input_of("mine", "checkpoint").directory
    weights = [load_file(directory / "model.safetensors") for directory in (made, tiny_random_checkpoint)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
