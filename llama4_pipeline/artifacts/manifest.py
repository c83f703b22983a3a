"""The manifest of an artifact: which files it holds, what they were made from, what the stage had to say."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import from_json, to_json

from llama4_pipeline.artifacts.recipe import Recipe

MANIFEST = "manifest.json"
NOTES = "notes"
"""Directory of an artifact for what a stage says about its work: plots, timings. Not part of the digest."""
_HASHING_THREADS = 4


class FileRecord(BaseModel):
    """One file of an artifact as it was when the artifact was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # names an object of the shared store
    modified_ns: int

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{value!r} leads out of the artifact")
        return value


class Manifest(BaseModel):
    """Everything known about an artifact, kept in it as manifest.json and written last.

    Attributes:
        recipe: What it was made from.
        key: The recipe's key.
        digest: sha256 over names, sizes and hashes of its files; equal digests are equal content.
        files: Its files, without this manifest.
        bytes: Sum of the files' sizes. Files hard-linked from an input count fully here.
        seconds: Wall time of the stage.
        created: UTC time of publishing, ISO 8601.
        facts: What the stage reports about its work (counts, figures); no part of the digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    key: str
    digest: str
    files: tuple[FileRecord, ...]
    bytes: int
    seconds: float
    created: str
    facts: dict[str, Any] = {}

    @field_validator("facts")
    @classmethod
    def _as_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """What reading the manifest back gives: lists for tuples, None for NaN and infinity."""
        plain: dict[str, Any] = from_json(to_json(value, inf_nan_mode="null"))
        return plain


def describe_directory(
    recipe: Recipe,
    directory: Path,
    known: Mapping[tuple[int, int], FileRecord],
    facts: Mapping[str, Any],
    seconds: float,
) -> Manifest:
    """The manifest of what a stage wrote; it is not written yet.

    Args:
        recipe: What the files were made from.
        directory: What the stage wrote.
        known: (device, inode) of files already hashed.
        facts: What the stage reports.
        seconds: Wall time of the stage.

    Raises:
        ValueError: The stage wrote nothing, a link, or a manifest of its own.
    """
    if (directory / MANIFEST).exists():
        raise ValueError(f"{recipe.stage} wrote {MANIFEST}, which is written after it")
    files = record_files(directory, known)
    return Manifest(
        recipe=recipe,
        key=recipe.key(),
        digest=content_digest(files),
        files=files,
        bytes=sum(file.bytes for file in files),
        seconds=round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=dict(facts),
    )


def content_digest(files: tuple[FileRecord, ...]) -> str:
    """The digest of an artifact's content; neither times of modification nor notes count."""
    content = (file for file in files if PurePosixPath(file.path).parts[0] != NOTES)
    lines = sorted(f"{file.path}\0{file.bytes}\0{file.sha256}\n" for file in content)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def record_files(directory: Path, known: Mapping[tuple[int, int], FileRecord]) -> tuple[FileRecord, ...]:
    """Hashes every file below a directory.

    Args:
        directory: What a stage wrote.
        known: (device, inode) of files already hashed, so that weights linked from an input are not read
            again.

    Raises:
        ValueError: The directory is empty, or holds something that is neither a directory nor a plain file: a
            link could lead out of the store.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path.relative_to(directory)}: an artifact holds plain files only")
    if not paths:
        raise ValueError("the stage wrote no file")

    def record(path: Path) -> FileRecord:
        stat = path.stat()
        earlier = known.get((stat.st_dev, stat.st_ino))
        unchanged = earlier is not None and is_unchanged(path, earlier)
        return FileRecord(
            path=path.relative_to(directory).as_posix(),
            bytes=stat.st_size,
            sha256=earlier.sha256 if earlier is not None and unchanged else file_sha256(path),
            modified_ns=stat.st_mtime_ns,
        )

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return tuple(pool.map(record, paths))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: Path, record: FileRecord) -> bool:
    """Whether a file has the size and the time of modification that were recorded."""
    stat = path.stat()
    return stat.st_size == record.bytes and stat.st_mtime_ns == record.modified_ns


def write_durably(path: Path, text: str) -> None:
    """Writes a text file and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
