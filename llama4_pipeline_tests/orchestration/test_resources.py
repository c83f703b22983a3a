"""The store that a run's configuration names is one that the environment could name."""

from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.resources import ArtifactStore


def test_a_root_of_a_run_is_taken_like_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ArtifactStore(root="~/store").open().place == str(tmp_path / "store")
    assert ArtifactStore(root="store").history() == str(tmp_path / "store" / "history")
    with pytest.raises(InputError, match="holds a password") as caught:
        ArtifactStore(root="s3://key:wJalr/XUtn@bucket").open()
    assert "XUtn" not in str(caught.value)
