"""What comes from outside stays where it belongs: secrets in the environment, names inside the store."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from llama4_pipeline import cli
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE, artifacts_root
from llama4_pipeline.definitions import defs
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYSECRETKEY",
    "DAGSTER_PG_URL": "postgresql+psycopg2://pipeline:correct-horse-battery-staple@127.0.0.1:9/runs",
}
_RECOGNISED = (SECRETS["HF_TOKEN"], SECRETS["AWS_SECRET_ACCESS_KEY"], "correct-horse-battery-staple")
_GATED = '[models.mini]\nsource = "hub:somebody/gated"\n'

Materialize = Callable[[str, str], dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(
    tmp_path: Path, catalog: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> Materialize:
    """Materializes an asset for a partition; what is written down, all of it, lies below `tmp_path`."""
    with (tmp_path / "catalog.toml").open("a") as file:
        file.write(_GATED)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())

    def run(asset: str, partition: str) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            return dg.materialize(
                [*(defs.assets or [])],
                selection=[asset],
                partition_key=partition,
                instance=instance,
                resources={
                    "artifacts": ArtifactStore(root=str(tmp_path / "artifacts")),
                    "device": ComputeDevice(),
                },
                raise_on_error=False,
            )

    return run


def test_no_secret_is_written_down(materialize: Materialize, tmp_path: Path) -> None:
    assert materialize("checkpoint", "tiny").success
    assert not materialize("checkpoint", "mini").success
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "model.safetensors"} & {path.name for path in written}
    assert any(path.suffix == ".db" and b"seconds_to_build" in path.read_bytes() for path in written)
    assert leaks(tmp_path) == []


def leaks(directory: Path) -> list[Path]:
    """The files below a directory that hold a secret."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in _RECOGNISED)]


@pytest.mark.parametrize("partition", ["../outside", "/etc", "tiny/../../outside", "nobody"])
def test_a_partition_is_a_model_of_the_catalog(
    materialize: Materialize, tmp_path: Path, partition: str
) -> None:
    with pytest.raises(dg.DagsterUnknownPartitionError):
        materialize("checkpoint", partition)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    "url", ["s3://key:{secret}@bucket/prefix", "ftp://user:{secret}@host", "s3://:{secret}@bucket"]
)
def test_a_password_in_the_place_of_the_artifacts_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    secret = "wJalr/XUtn"
    monkeypatch.setenv(ARTIFACTS_VARIABLE, url.format(secret=secret))
    assert cli.main(["store", "verify"]) == 2
    said = capsys.readouterr().err
    assert "holds a password" in said and secret not in said


def test_a_user_in_the_place_of_the_artifacts_is_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "abfs://container@account.dfs.core.windows.net/prefix"
    monkeypatch.setenv(ARTIFACTS_VARIABLE, place)
    assert artifacts_root() == place
