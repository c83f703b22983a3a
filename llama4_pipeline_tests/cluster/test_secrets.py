"""What opens the servers of a cluster stays in the environment: no server, home or log holds it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE, COPIES_VARIABLE
from llama4_pipeline.artifacts.objects import Objects
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.cluster.postgres import postgres_server
from llama4_pipeline_tests.cluster.s3 import s3_server
from llama4_pipeline_tests.orchestration.dagster_processes import ROOT, DagsterProcesses

_SECRET = "correct-horse-battery-staple"


@pytest.mark.cluster
def test_no_secret_reaches_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[str]
) -> None:
    (tmp_path / "catalog.toml").write_text(CATALOG.format(seed=0))
    with s3_server() as bucket, postgres_server() as database:
        monkeypatch.setenv("DAGSTER_PG_URL", database.replace("@", f":{_SECRET}@"))
        settings = {
            "AWS_SECRET_ACCESS_KEY": f"aws-{_SECRET}",
            "HF_TOKEN": f"hf_{_SECRET}",
            ARTIFACTS_VARIABLE: f"{bucket}/pipeline",
            COPIES_VARIABLE: str(tmp_path / "copies"),
            USER_CATALOG_VARIABLE: str(tmp_path / "catalog.toml"),
        }
        dagster = DagsterProcesses(tmp_path / "home", ROOT / "dagster-postgres.yaml", settings)
        command = [
            sys.executable,
            "-m",
            "dagster",
            "asset",
            "materialize",
            "-m",
            "llama4_pipeline.definitions",
        ]
        command += ["--select", "checkpoint,datasets", "--partition", "tiny"]
        with (tmp_path / "said").open("w") as said:
            subprocess.run(
                command, cwd=ROOT, env=dagster.environment, stdout=said, stderr=subprocess.STDOUT, check=True
            )
        kept = {"database": "\n".join(_rows(database)).encode()}
        objects = Objects(f"{bucket}/pipeline")
        kept |= {name: objects.read(name) or b"" for name in objects.names()}
        kept |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b"seconds_to_build" in kept["database"] and "tiny/checkpoint/latest.json" in kept
    assert [name for name, content in kept.items() if _SECRET.encode() in content] == []
    tried.append(
        "a run with passwords for S3, PostgreSQL and the hub: "
        f"none of them in the database and {len(kept) - 1} objects and files"
    )


def _rows(database: str) -> Iterator[str]:
    """Every row of every table, as text."""
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(engine).get_table_names():
            yield from connection.execute(sqlalchemy.text(f'SELECT t::text FROM "{table}" t')).scalars()
    engine.dispose()
