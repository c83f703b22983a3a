"""`shards`: a checkpoint directory that exists whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.cli import main
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline.llama4.safetensors_file import StoredTensor
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    write_synthetic_checkpoint(tmp_path / "model", PECULIAR_CONFIG, seed=3, dtype="bfloat16")
    return tmp_path / "model"


def test_weights_made_on_demand_come_to_lie_on_disk(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(["shards", "--checkpoint", str(synthetic), "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    made, written = Checkpoint.open(synthetic), Checkpoint.open(out)
    assert (record["bytes"], record["files"]) == (2 * 131088, ["model.safetensors"])
    assert written.text_config == made.text_config
    for name in made.weights.names():
        np.testing.assert_array_equal(written.weights.read(name), made.weights.read(name))


def test_nothing_is_left_of_a_checkpoint_that_breaks_off(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "new" / "shards"
    assert main(["shards", "--checkpoint", str(synthetic), "--out", str(source)]) == 0

    def full_disk(self: StoredTensor, rows: slice | None = None) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoredTensor, "read", full_disk)
    assert main(["shards", "--checkpoint", str(source), "--out", str(out)]) == 2
    assert f"no space for --out {out}" in capsys.readouterr().err
    assert not out.parent.exists()
