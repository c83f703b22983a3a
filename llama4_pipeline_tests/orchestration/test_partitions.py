"""A local checkpoint becomes a partition while the UI runs: a table in the user's catalog, and a reload."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
def ask(catalog: Path, tmp_path: Path) -> Iterator[Ask]:
    """A running UI, to be asked over GraphQL as its pages do."""
    dagster = DagsterProcesses(tmp_path / "home", ROOT / "dagster.yaml", {})
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


def test_a_checkpoint_in_the_users_catalog_becomes_a_partition(ask: Ask, catalog: Path) -> None:
    def partitions() -> list[str]:
        keys: list[str] = ask(_PARTITIONS)["assetNodeOrError"]["partitionKeys"]
        return keys

    assert "tiny" in partitions() and "mine" not in partitions()
    catalog.write_text(_TABLE.format(name="mine", directory="checkpoints/mine"))
    assert ask(_RELOAD)["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
    assert partitions()[-1] == "mine"
