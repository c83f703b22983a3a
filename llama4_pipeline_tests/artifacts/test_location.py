"""Where the store is: what the environment says, with the user's home where it is known."""

from pathlib import Path

import pytest

from llama4_pipeline.artifacts.location import (
    ARTIFACTS_VARIABLE,
    COPIES_VARIABLE,
    artifacts_root,
    history_directory,
    open_store,
)
from llama4_pipeline.errors import InputError


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ARTIFACTS_VARIABLE, "~/store")
    assert artifacts_root() == str(tmp_path / "store")


def test_a_user_without_a_home_is_told_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv(COPIES_VARIABLE, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(InputError, match=rf"home directory.*\${COPIES_VARIABLE}"):
        open_store("s3://bucket/prefix")
    monkeypatch.setenv(ARTIFACTS_VARIABLE, "~/store")
    with pytest.raises(InputError, match=rf"home directory.*\${ARTIFACTS_VARIABLE}"):
        artifacts_root()


def test_a_store_has_one_history_however_its_url_ends() -> None:
    assert history_directory("s3://bucket/prefix/") == history_directory("s3://bucket/prefix")
