"""The code version over small packages written for the test, and over this package."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama4_pipeline.artifacts import code_version as module
from llama4_pipeline.artifacts.code_version import code_version

CACHES = (module._read, module._file_of, module._root_of)
FILES = {
    "__init__.py": "",
    "room/__init__.py": '"""A room."""\n',
    "room/stage.py": (
        '"""A stage."""\n'
        "from typing import TYPE_CHECKING\n"
        "import numpy\n"
        "if TYPE_CHECKING:\n"
        "    from first.unseen import Type\n"
        "REGISTRY = {'x': 'first.registered:make'}\n"
        "def build(x):\n"
        '    """Builds."""\n'
        "    from first.room.near import helper\n"
        "    from .. import far\n"
        "    from first.progress import WIDTH\n"
        "    return helper(x) + far.f(x)\n"
    ),
    "progress.py": "from first import shown\nWIDTH = 30\n",
    "shown.py": "A = 1\n",
    "room/near.py": "from . import sibling\nPAGE = 'page.html'\ndef helper(x):\n    return x + 1\n",
    "room/page.html": "<p>",
    "room/unnamed.html": "<p>",
    "room/sibling.py": "A = 1\n",
    "far.py": "def f(x):\n    return x\n",
    "registered.py": "def make():\n    return 1\n",
    "unseen.py": "class Type: ...\n",
    "unrelated.py": "A = 1\n",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(tmp_path)
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


def version(root: Path, changes: dict[str, str] | None = None) -> str:
    package = root / "first"
    for name, text in {**FILES, **(changes or {})}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    module._read.cache_clear()
    return code_version("first.room.stage:build")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("room/stage.py", FILES["room/stage.py"].replace("helper(x) + far.f(x)", "helper(x) - far.f(x)")),
        ("room/near.py", FILES["room/near.py"].replace("x + 1", "x + 2")),
        ("room/sibling.py", "A = 2\n"),
        ("room/__init__.py", "A = 2\n"),
        ("room/page.html", "<b>"),
        ("far.py", "def f(x):\n    return -x\n"),
        ("registered.py", "def make():\n    return 2\n"),
        ("__init__.py", "A = 2\n"),
    ],
)
def test_code_that_runs_counts(tmp_path: Path, file: str, text: str) -> None:
    assert version(tmp_path, {file: text}) != version(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("room/stage.py", "# a comment\n" + FILES["room/stage.py"].replace("Builds.", "Builds it.")),
        (
            "room/near.py",
            "from . import sibling\nPAGE = 'page.html'\n\ndef helper(x):\n    return (\n        x + 1)  # more\n",
        ),
        ("room/near.py", '"""Now documented."""\n' + FILES["room/near.py"]),
        ("room/unnamed.html", "<b>"),
        ("unseen.py", "class Type:\n    a = 1\n"),
        ("unrelated.py", "A = 2\n"),
        ("progress.py", "from first import shown\nWIDTH = 40\n"),
        ("shown.py", "A = 2\n"),
    ],
)
def test_what_does_not_run_does_not_count(tmp_path: Path, file: str, text: str) -> None:
    assert version(tmp_path, {file: text}) == version(tmp_path)


@pytest.mark.parametrize(
    "function", ["first.room.stage:missing", "first.nowhere:f", "no_such.room:f", "first.room"]
)
def test_an_unknown_function_is_refused(tmp_path: Path, function: str) -> None:
    version(tmp_path)
    with pytest.raises(ValueError, match="no such function"):
        code_version(function)


def test_this_package_is_hashed_in_well_under_a_second() -> None:
    start = time.perf_counter()
    assert len(code_version("llama4_pipeline.artifacts.code_version:code_version")) == 64
    assert time.perf_counter() - start < 1.0
