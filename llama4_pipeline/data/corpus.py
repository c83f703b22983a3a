"""English text that every Python brings: the language reference and the docstrings of the standard library.

The corpus needs no download and is the same wherever the same Python version is installed: optional parts
that distributions leave out (Tk, IDLE, the test suite) are not read.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llama4_pipeline.errors import InputError

KINDS = ("topic", "module", "class", "function")
Shingle = tuple[str, ...]
"""A sequence of eight words: what two texts with common passages have in common."""

_NOT_EVERYWHERE = {
    "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload",
    "lib2to3", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
_SHORTEST_TEXT = 60
_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<rule>\*{3,}|={3,}|-{3,}|~{3,})\n", re.MULTILINE)
_SHINGLE_WORDS = 8
_LARGEST_SHARED_PART = 0.25
_VALIDATION_PERCENT = 8
_TASKS_PERCENT = {"topic": 22, "module": 20}


@dataclass(frozen=True)
class Section:
    """One piece of documentation.

    Attributes:
        source: Where it stands, "topics/NAME" or a file of the standard library; sections of one source never
            end up in different splits.
        title: Its heading, or the name of the module, class or function as the source spells it.
        kind: One of KINDS.
        text: The text without the title.
    """

    source: str
    title: str
    kind: str
    text: str


@dataclass(frozen=True)
class Splits:
    """The corpus in three disjoint parts: what models learn from, perplexity text, held-out task examples."""

    train: tuple[Section, ...]
    validation: tuple[Section, ...]
    tasks: tuple[Section, ...]


@cache
def read_corpus() -> tuple[Section, ...]:
    """All sections of this Python, each text once, in a fixed order; read once in a process.

    Raises:
        InputError: This Python has no language reference or no sources of its standard library.
    """
    seen: set[str] = set()
    sections = []
    for section in (*_topic_sections(), *_library_sections()):
        content = " ".join(section.text.split())
        if len(content) >= _SHORTEST_TEXT and content not in seen:
            seen.add(content)
            sections.append(section)
    if {section.kind for section in sections} != set(KINDS):
        raise InputError(
            "this Python lacks the sources of its standard library: install the full python package"
        )
    return tuple(sections)


def split_corpus(sections: Iterable[Section]) -> Splits:
    """Divides sections by source, and drops held-out ones that repeat what stands in the other splits.

    A source goes to a split by a hash of its name, so that other sources do not matter. A section is repeated
    when more than a quarter of its eight-word sequences occur in the split that it must be unlike.
    """
    parts: dict[str, list[Section]] = {"train": [], "validation": [], "tasks": []}
    for section in sections:
        parts[_split_of(section.source)].append(section)
    known = shingles(*(section.text for section in parts["train"]))
    validation = [section for section in parts["validation"] if not repeats(shingles(section.text), known)]
    known |= shingles(*(section.text for section in validation))
    tasks = [section for section in parts["tasks"] if not repeats(shingles(section.text), known)]
    return Splits(tuple(parts["train"]), tuple(validation), tuple(tasks))


def documents(sections: Iterable[Section]) -> list[str]:
    """Joins the sections of each source to one text, titles above their texts."""
    by_source: dict[str, list[str]] = {}
    for section in sections:
        by_source.setdefault(section.source, []).append(f"{section.title}\n\n{section.text}\n")
    return ["\n".join(texts) for texts in by_source.values()]


def shingles(*texts: str) -> set[Shingle]:
    """All sequences of eight words in the texts, of a shorter text all its words; blanks do not matter."""
    return {shingle for text in texts for shingle in _shingles(text)}


def repeats(own: Set[Shingle], known: Set[Shingle]) -> bool:
    """Whether a text of these shingles says again what is known: more than a quarter of them are."""
    return len(own & known) > _LARGEST_SHARED_PART * len(own)


def _split_of(source: str) -> str:
    draw = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % 100
    tasks_percent = _TASKS_PERCENT["topic" if source.startswith("topics/") else "module"]
    if draw < _VALIDATION_PERCENT:
        return "validation"
    return "tasks" if draw < _VALIDATION_PERCENT + tasks_percent else "train"


def _shingles(text: str) -> Iterator[Shingle]:
    words = text.split()
    for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
        yield tuple(words[start : start + _SHINGLE_WORDS])


def _topic_sections() -> Iterator[Section]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError("this Python lacks pydoc_data.topics: install the full python package") from error
    for name, topic in sorted(topics.items()):
        headings = list(_HEADING.finditer(topic))
        ends = [heading.start() for heading in headings[1:]] + [len(topic)]
        for heading, end in zip(headings, ends, strict=True):
            text = topic[heading.end() : end].strip()
            yield Section(f"topics/{name}", heading["title"].strip(), "topic", text)


def _library_sections() -> Iterator[Section]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        parents = relative.parts[:-1]
        if any(part in _NOT_EVERYWHERE or part.startswith("config-") for part in parents):
            continue
        if relative.name.startswith(("_sysconfigdata", "sitecustomize")):
            continue
        yield from _docstrings(path, relative)


def _docstrings(path: Path, relative: Path) -> Iterator[Section]:
    source = relative.as_posix()
    for node in _statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module):
            kind, title = "module", source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        elif isinstance(node, ast.ClassDef):
            kind, title = "class", node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kind, title = "function", node.name
        else:
            continue
        text = ast.get_docstring(node)
        if text:
            yield Section(source, title, kind, text)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A module and its statements in the order of the file; expressions, which define nothing, are left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _statements(child)
