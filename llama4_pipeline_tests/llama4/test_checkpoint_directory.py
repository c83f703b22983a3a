"""A Hugging Face id, from the cache that the hub's library keeps: no hub is reached."""

from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint_directory import local_directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two snapshots of one repository: what `main` is, and what the tag `v1` was."""
    repository = tmp_path / "models--ours--model"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "b" * 40), ("v1", "a" * 40)):
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "snapshots"


@pytest.mark.parametrize(
    ("named", "commit"), [("ours/model", "b"), ("ours/model@v1", "a"), (f"ours/model@{'a' * 40}", "a")]
)
def test_a_revision_is_what_its_name_says(cache: Path, named: str, commit: str) -> None:
    assert local_directory(named) == cache / (commit * 40)


def test_a_revision_that_is_not_there_is_named(cache: Path) -> None:
    with pytest.raises(InputError, match="ours/model@v2: no such directory, and the Hugging Face download"):
        local_directory("ours/model@v2")
