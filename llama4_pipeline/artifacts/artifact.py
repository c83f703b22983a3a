"""A published artifact, and the test whether it still is what was published."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llama4_pipeline.artifacts.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    content_digest,
    file_sha256,
    is_unchanged,
)


@dataclass(frozen=True)
class Artifact:
    """What was published, and its manifest.

    Attributes:
        local: Its directory on this machine.
        manifest: What is in it.
    """

    local: Path
    manifest: Manifest

    @property
    def directory(self) -> Path:
        """Its directory on this machine, with every file."""
        return self.local

    @property
    def place(self) -> str:
        """Where the store keeps it."""
        return str(self.local)

    def read(self, name: str) -> bytes:
        """The content of one of its files."""
        return (self.local / name).read_bytes()

    @property
    def stage(self) -> str:
        """Name of the stage that made it."""
        return self.manifest.recipe.stage

    @property
    def model(self) -> str:
        """Name of the model it belongs to."""
        return self.manifest.recipe.model

    @property
    def digest(self) -> str:
        """Digest of its content."""
        return self.manifest.digest

    def digest_of(self, files: Collection[str] | None) -> str:
        """Digest of the content of some of its files, by path; of all for None."""
        if files is None:
            return self.digest
        return content_digest(tuple(record for record in self.manifest.files if record.path in files))

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reported."""
        return self.manifest.facts


@dataclass(frozen=True)
class Found:
    """The answer to "is there an artifact": the artifact, or what is wrong with it, or neither."""

    artifact: Artifact | None = None
    damage: str | None = None


def open_artifact(directory: Path) -> Found:
    """Reads a directory's manifest and nothing else."""
    try:
        text = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        return Found(damage=f"{MANIFEST} is missing") if directory.exists() else Found()
    except IsADirectoryError:
        return Found(damage=f"{MANIFEST} is a directory")
    try:
        return Found(Artifact(directory, Manifest.model_validate_json(text)))
    except ValidationError:
        return Found(damage=f"{MANIFEST} cannot be read")


def damage_of_manifest(manifest: Manifest) -> str | None:
    """What contradicts itself in a manifest, or None."""
    if manifest.key != manifest.recipe.key():
        return f"{MANIFEST}: the key does not fit the recipe"
    if manifest.digest != content_digest(manifest.files):
        return f"{MANIFEST}: the digest does not fit the files"
    return None


def damage_of(artifact: Artifact, hash_all: bool) -> str | None:
    """What is wrong with an artifact's manifest or files, or None.

    Args:
        artifact: The one to test.
        hash_all: Hash every file; otherwise only those whose time of modification changed.
    """
    if damage := damage_of_manifest(artifact.manifest):
        return damage
    for record in artifact.manifest.files:
        path = artifact.local / record.path
        if path.is_symlink() or not path.is_file():
            return f"{record.path} is missing"
        if path.stat().st_size != record.bytes:
            return f"{record.path} has {path.stat().st_size:,} bytes instead of {record.bytes:,}"
        if (hash_all or not is_unchanged(path, record)) and file_sha256(path) != record.sha256:
            return f"{record.path} has other content than was published"
    return None


def stranger_in(artifact: Artifact) -> str | None:
    """What is said of a file that was not published with an artifact, or None."""
    published = {MANIFEST, *(record.path for record in artifact.manifest.files)}
    for path in sorted(artifact.local.rglob("*")):
        if not path.is_dir() and (name := path.relative_to(artifact.local).as_posix()) not in published:
            return f"{name} is no file of it: remove that"
    return None


def files_by_inode(artifact: Artifact) -> dict[tuple[int, int], FileRecord]:
    """(device, inode) of each file, to recognise it under another name."""
    found = {}
    for record in artifact.manifest.files:
        stat = (artifact.local / record.path).stat()
        found[stat.st_dev, stat.st_ino] = record
    return found
