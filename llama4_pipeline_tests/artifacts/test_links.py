"""What is linked and what is copied."""

import os
from pathlib import Path

import pytest

from llama4_pipeline.artifacts.links import copied_bytes


def test_what_cannot_be_linked_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may refuse links to files of another user (fs.protected_hardlinks)."""
    source, link = tmp_path / "weights", os.link
    source.write_bytes(b"w" * 1000)
    (tmp_path / "out").mkdir()
    assert copied_bytes([source], tmp_path / "out") == 0

    def refuses(original: Path, target: Path) -> None:
        if original == source:
            raise PermissionError(1, "Operation not permitted")
        link(original, target)

    monkeypatch.setattr(os, "link", refuses)
    assert copied_bytes([source], tmp_path / "out") == 1000
    assert not list((tmp_path / "out").iterdir())
