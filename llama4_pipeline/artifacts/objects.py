"""Objects in an S3-compatible store: the few operations that the shared store is made of, through fsspec."""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.full_disk import is_out_of_space

_MARK = ".store"
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _told(request: Callable[Concatenate["Objects", _P], _T]) -> Callable[Concatenate["Objects", _P], _T]:
    """A request whose refusal is told in one way, whatever the protocol raises."""

    @wraps(request)
    def asked(objects: "Objects", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return request(objects, *args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            if is_out_of_space(error):  # of this machine
                raise
            raise InputError(f"{objects.url} cannot be used for artifacts: {one_line(error)}") from error

    return asked


class Objects:
    """The objects below a URL. Each appears whole or not at all, and what was written is read at once.

    Every method raises InputError where the store refuses it or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        """Opens the place and, the first time, proves that it can be written.

        Args:
            url: "s3://BUCKET/PREFIX" or what else fsspec knows; credentials come from the environment.

        Raises:
            InputError: It cannot be reached.
        """
        self.url = url.rstrip("/")
        self._files, self._base = self._connect()
        if self.read(_MARK) is None:
            self.write(_MARK, b"llama4-pipeline artifacts")

    @_told
    def read(self, name: str) -> bytes | None:
        """The content of an object, or None where there is none."""
        try:
            content: bytes = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    @_told
    def write(self, name: str, content: bytes) -> None:
        """Writes an object, in place of an earlier one."""
        self._files.pipe_file(self._path(name), content)

    @_told
    def create(self, name: str, content: bytes) -> bool:
        """Writes an object that does not exist yet; tells whether that was so. Of several callers one succeeds."""
        try:
            self._files.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    @_told
    def upload(self, file: Path, name: str) -> None:
        """Makes an object of a file, in parts if it is large."""
        self._files.put_file(str(file), self._path(name))

    @_told
    def download(self, name: str, file: Path) -> bool:
        """Makes a file of an object; tells whether there is one."""
        try:
            self._files.get_file(self._path(name), str(file))
        except FileNotFoundError:
            return False
        return True

    @_told
    def sha256(self, name: str) -> str | None:
        """The hash of an object's content, or None where there is none."""
        try:
            with self._files.open(self._path(name), "rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    @_told
    def size(self, name: str) -> int | None:
        """The bytes of an object, or None where there is none."""
        try:
            return int(self._files.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    @_told
    def modified(self, name: str) -> datetime | None:
        """When an object was written, or None where there is none."""
        try:
            moment: datetime = self._files.modified(self._path(name))
        except FileNotFoundError:
            return None
        return moment

    @_told
    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the objects below a prefix."""
        found = self._files.find(self._path(prefix) if prefix else self._base)
        return sorted(path.removeprefix(self._base).lstrip("/") for path in found)

    @_told
    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, many in one request where the store can."""
        paths = [self._path(name) for name in names]
        if paths:
            self._files.rm(paths)

    @_told
    def _connect(self) -> tuple[AbstractFileSystem, str]:
        try:
            files, base = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(f"{self.url}: {error}; pip install 'llama4-pipeline[s3]'") from error
        if isinstance(files, LocalFileSystem):
            files.auto_mkdir = True
        return files, base

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"
