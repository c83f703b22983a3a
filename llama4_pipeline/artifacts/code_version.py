"""The code version of a function: a hash of what its module and the first-party modules it imports say.

Two texts with the same meaning have the same version: comments, formatting and docstrings do not count.
Imports count wherever they stand, also inside functions, except under `if TYPE_CHECKING`, which never runs. A
string of the form "llama4_pipeline.room.module:name" counts as an import, because registries load such names
lazily. A string that is the name of a data file beside the module, a template say, stands for what is in the
file. The package's module `progress` does not count: it shows how far a step is, and makes nothing. Nothing is
imported to find out: modules are read as files.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_DATA_FILE = re.compile(r"[\w-]+\.(?!py$)\w+")
_SHOWS_ONLY = "progress"
_DOTTED_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def code_version(function: str) -> str:
    """The version of the code behind a function.

    Args:
        function: "package.module:name". Imports of its package are followed, imports from elsewhere are not.

    Returns:
        A sha256 in hexadecimal.

    Raises:
        ValueError: There is no such module or no such name in it.
    """
    module, _, name = function.partition(":")
    file = _file_of(module)
    if file is None or name not in _read(file).names:
        raise ValueError(f"{function}: no such function")
    digest = hashlib.sha256()
    for reached in sorted(_reachable(module)):
        digest.update(f"{reached} {_read(_require(reached)).digest}\n".encode())
    return digest.hexdigest()


class _Source:
    """What counts in one file: the hash of its meaning, its top-level names, and what it refers to."""

    def __init__(self, file: Path) -> None:
        tree = ast.parse(file.read_bytes(), filename=str(file))
        nodes = list(_without_docstrings(tree))
        digest = hashlib.sha256(ast.dump(tree).encode())
        for data in _data_files(nodes, file.parent):
            digest.update(data.read_bytes())
        self.digest = digest.hexdigest()
        self.names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        self.references = tuple(_references(nodes))


@functools.cache
def _read(file: Path) -> _Source:
    return _Source(file)


def _reachable(start: str) -> set[str]:
    """The module, the packages above it, and whatever they import, of the first-party ones."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in reached or module.partition(".")[2] == _SHOWS_ONLY:
            continue
        reached.add(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        file = _require(module)
        above = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for level, target in _read(file).references:
            if level:
                base = above.rsplit(".", level - 1)[0] if level > 1 else above
                target = f"{base}.{target}".rstrip(".")
            known = _longest_module(target, package=start.split(".")[0])
            if known:
                waiting.append(known)
    return reached


def _without_docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    """Takes the docstrings away; yields every node but those that never run."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())), *rest]:
                    node.body = rest
        match node:
            case ast.If(ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                waiting += node.orelse
            case _:
                waiting += ast.iter_child_nodes(node)


def _references(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of each import; the name may end in attributes of a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".lstrip(".")) for alias in node.names)
    yield from ((0, text.replace(":", ".")) for text in _strings(nodes) if _DOTTED_FUNCTION.fullmatch(text))


def _data_files(nodes: Iterable[ast.AST], directory: Path) -> list[Path]:
    """The files beside a module that strings in it name."""
    names = sorted(text for text in _strings(nodes) if _DATA_FILE.fullmatch(text))
    return [directory / name for name in names if (directory / name).is_file()]


def _strings(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _longest_module(dotted: str, package: str) -> str | None:
    """The module that a dotted name is or lies in: `a.b.f` may be the function f of the module a.b."""
    while dotted == package or dotted.startswith(f"{package}."):
        if _file_of(dotted):
            return dotted
        dotted = dotted.rpartition(".")[0]
    return None


@functools.cache
def _file_of(module: str) -> Path | None:
    package, *rest = module.split(".")
    if not all(part.isidentifier() for part in (package, *rest)):
        return None
    root = _root_of(package)
    if root is None:
        return None
    base = root.joinpath(*rest)
    candidates = [base / "__init__.py", base.with_suffix(".py")] if rest else [base / "__init__.py"]
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _root_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin and spec.submodule_search_locations else None


def _require(module: str) -> Path:
    file = _file_of(module)
    if file is None:
        raise ValueError(f"{module}: no such module")
    return file
