"""The commit of a measurement: the last one of the package, and whether the package was edited since."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llama4_pipeline.report.commit import commit_of

_AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org")


def _commit_all(checkout: Path) -> str:
    for words in (("add", "-A"), ("commit", "-q", "-m", "a state")):
        subprocess.run(["git", "-C", str(checkout), *_AUTHOR, *words], check=True)
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return head.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("one = 1\n")
    return tmp_path


def nothing(checkout: Path) -> None:
    pass


def an_edit(checkout: Path) -> None:
    (checkout / "package" / "code.py").write_text("one = 2\n")


def a_new_file(checkout: Path) -> None:
    (checkout / "package" / "more.py").write_text("two = 2\n")


def an_edit_outside_the_package(checkout: Path) -> None:
    (checkout / "notes.md").write_text("Notes")


@pytest.mark.parametrize(
    ("change", "mark"),
    [(nothing, ""), (an_edit, "-dirty"), (a_new_file, "-dirty"), (an_edit_outside_the_package, "")],
)
def test_edits_of_the_package_are_marked(checkout: Path, change: Callable[[Path], None], mark: str) -> None:
    commit = _commit_all(checkout)
    change(checkout)
    assert commit_of(checkout / "package") == f"{commit}{mark}"


def test_outside_a_checkout_there_is_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
