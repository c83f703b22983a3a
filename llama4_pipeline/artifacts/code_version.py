"""The code version of a function: a hash of what its module and the first-party modules it imports say.

Two texts with the same meaning have the same version: comments, formatting and docstrings do not count.
Imports count wherever they stand, also inside functions, except under `if TYPE_CHECKING`, which never runs. A
string of the form "llama4_pipeline.room.module:name" counts as an import, because registries load such names
lazily. A string that is the name of a data file beside the module, a template say, stands for what is in the
file. Nothing is imported to find out: modules are read as files.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = __name__.split(".")[0]
_ROOT = Path(__file__).parents[1]
_DATA_FILE = re.compile(r"[\w-]+\.(?!py$)\w+")
_DOTTED_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def code_version(function: str, *, package: str = _PACKAGE, root: Path = _ROOT) -> str:
    """The version of the code behind a function.

    Args:
        function: "package.module:name".
        package: Name of the first-party package; imports from elsewhere are not followed.
        root: Directory of that package.

    Returns:
        A sha256 in hexadecimal.

    Raises:
        ValueError: There is no such module or no such name in it.
    """
    module, _, name = function.partition(":")
    file = _file_of(module, package, root)
    if file is None or name not in _read(file).names:
        raise ValueError(f"{function}: no such function in {package}")
    digest = hashlib.sha256()
    for reached in sorted(_reachable(module, package, root)):
        digest.update(f"{reached} {_read(_require(reached, package, root)).digest}\n".encode())
    return digest.hexdigest()


class _Source:
    """What counts in one file: the hash of its meaning, its top-level names, and what it refers to."""

    def __init__(self, file: Path) -> None:
        tree = ast.parse(file.read_bytes(), filename=str(file))
        _remove_docstrings(tree)
        digest = hashlib.sha256(ast.dump(tree).encode())
        for data in _data_files(tree, file.parent):
            digest.update(data.read_bytes())
        self.digest = digest.hexdigest()
        self.names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        self.references = tuple(_references(tree))


@functools.cache
def _read(file: Path) -> _Source:
    return _Source(file)


def _reachable(start: str, package: str, root: Path) -> set[str]:
    """The module, the packages above it, and whatever they import, of the first-party ones."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        file = _require(module, package, root)
        above = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for level, target in _read(file).references:
            if level:
                base = above.rsplit(".", level - 1)[0] if level > 1 else above
                target = f"{base}.{target}".rstrip(".")
            known = _longest_module(target, package, root)
            if known:
                waiting.append(known)
    return reached


def _references(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of each import below a node; the name may end in attributes of a module."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    elif isinstance(node, ast.Import):
        yield from ((0, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.level, f"{node.module or ''}.{alias.name}".lstrip(".")) for alias in node.names)
    elif isinstance(node, ast.Constant) and _DOTTED_FUNCTION.fullmatch(str(node.value)):
        yield 0, str(node.value).replace(":", ".")
    for child in children:
        yield from _references(child)


def _data_files(tree: ast.Module, directory: Path) -> list[Path]:
    """The files beside a module that strings in it name."""
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = sorted(name for name in strings if isinstance(name, str) and _DATA_FILE.fullmatch(name))
    return [directory / name for name in names if (directory / name).is_file()]


def _longest_module(dotted: str, package: str, root: Path) -> str | None:
    """The module that a dotted name is or lies in: `a.b.f` may be the function f of the module a.b."""
    while dotted == package or dotted.startswith(f"{package}."):
        if _file_of(dotted, package, root):
            return dotted
        dotted = dotted.rpartition(".")[0]
    return None


@functools.cache
def _file_of(module: str, package: str, root: Path) -> Path | None:
    first, *rest = module.split(".")
    if first != package or not all(part.isidentifier() for part in rest):
        return None
    base = root.joinpath(*rest)
    candidates = [base / "__init__.py", base.with_suffix(".py")] if rest else [base / "__init__.py"]
    return next((file for file in candidates if file.is_file()), None)


def _require(module: str, package: str, root: Path) -> Path:
    file = _file_of(module, package, root)
    if file is None:
        raise ValueError(f"{module}: no such module in {package}")
    return file


def _remove_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
