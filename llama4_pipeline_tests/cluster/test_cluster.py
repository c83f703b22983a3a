"""The whole pipeline beyond one machine: Ray, an S3 server and PostgreSQL, against a run on one machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE, COPIES_VARIABLE
from llama4_pipeline.artifacts.shared_store import SharedStore
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE
from llama4_pipeline.orchestration.executors import EXECUTOR_VARIABLE
from llama4_pipeline.orchestration.resources import PAGES_VARIABLE
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.cluster.postgres import postgres_server
from llama4_pipeline_tests.cluster.ray_nodes import NODES, ray_cluster
from llama4_pipeline_tests.cluster.s3 import s3_server
from llama4_pipeline_tests.orchestration.dagster_processes import ROOT, DagsterProcesses

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(4800)]
MODEL = "tiny"
PAGES = "http://pages.example:3001"
_RUN_SECONDS = 1800
# What follows a measurement says when and how fast, which no two runs have in common.
MEASURED = {"pytorch_baseline", "benchmarks", "benchmark_table", "report"}


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables for every process: the small model; nothing of the user's."""
    file = tmp_path / "catalog.toml"
    file.write_text(CATALOG.format(seed=0))
    for name in (ARTIFACTS_VARIABLE, COPIES_VARIABLE, EXECUTOR_VARIABLE, "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(file))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return file


@pytest.fixture
def cluster(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterProcesses]:
    """Dagster with its storage on PostgreSQL, its steps on two Ray nodes, its artifacts on S3."""
    with s3_server() as bucket, postgres_server() as database:
        monkeypatch.setenv("DAGSTER_PG_URL", database)
        with ray_cluster(tmp_path) as address:
            settings = {
                EXECUTOR_VARIABLE: "ray",
                "RAY_ADDRESS": address,
                ARTIFACTS_VARIABLE: f"{bucket}/pipeline",
                COPIES_VARIABLE: str(tmp_path / "dagster"),
                PAGES_VARIABLE: PAGES,
            }
            yield DagsterProcesses(tmp_path / "home", ROOT / "dagster-postgres.yaml", settings)


def test_the_cluster_makes_what_one_machine_makes(
    cluster: DagsterProcesses, tmp_path: Path, tried: list[str]
) -> None:
    with cluster.running():
        first = cluster.launch(MODEL)
        assert cluster.wait_for(first, _RUN_SECONDS) is dg.DagsterRunStatus.SUCCESS, cluster.failures(first)
        second = cluster.launch(MODEL)
        assert cluster.wait_for(second, _RUN_SECONDS) is dg.DagsterRunStatus.SUCCESS, cluster.failures(second)
        with cluster.instance() as instance:
            assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
            page = instance.fetch_materializations(dg.AssetKey("report"), limit=1).records[0]
            assert page.asset_materialization.metadata["page"].value == f"{PAGES}/{MODEL}"
            reused = {
                record.asset_key.path[-1]: record.asset_materialization.metadata["reused"].value
                for name in STAGES
                for record in instance.fetch_materializations(dg.AssetKey(name), limit=1).records
            }
    assert reused == dict.fromkeys(STAGES, True), "the second run finds everything"

    shared = SharedStore(cluster.environment[ARTIFACTS_VARIABLE], tmp_path / "reader")
    local = _run_here(tmp_path / "local")
    assert shared.verify() == {}
    compared = [name for name in STAGES if name not in MEASURED]
    for name in compared:
        there, here = shared.input_of(MODEL, name).manifest, local.input_of(MODEL, name).manifest
        assert (name, there.key, there.digest) == (name, here.key, here.digest)
    worked = [
        node for node in NODES if any(Store(copies).artifacts() for copies in (tmp_path / node).iterdir())
    ]
    assert worked == list(NODES), "both nodes made or read artifacts"
    tried.append(
        f"{len(STAGES)} stages on {len(NODES)} Ray nodes, artifacts on S3, Dagster on PostgreSQL: "
        f"{len(compared)} of {len(compared)} digests as on one machine, then all {len(STAGES)} reused"
    )


def _run_here(directory: Path) -> Store:
    """The same pipeline in one process, with a local store."""
    directory.mkdir()
    environment = {**os.environ, ARTIFACTS_VARIABLE: str(directory / "artifacts")}
    command = [sys.executable, "-m", "llama4_pipeline.cli", "run", "--model", MODEL]
    subprocess.run(command, env=environment, cwd=directory, check=True, capture_output=True)
    return Store(directory / "artifacts")
