"""The store of several machines: artifacts in an object store, worked on in a local directory.

    <url>/<model>/<stage>/<first 16 characters of the key>/manifest.json    an artifact: written last
    <url>/<model>/<stage>/latest.json                                       the recipe used last
    <url>/.files/<sha256>                                                   the content of one file
    <url>/.leases/                                                          one object per key, while it is made

Files lie under their hash, so that two machines which make the same artifact at once cannot mix theirs, and weights
that pass through several stages are uploaded and downloaded once. Each machine has a directory of its own, a local
store of whole copies.
"""

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath

from pydantic import ValidationError

from llama4_pipeline.artifacts import locks
from llama4_pipeline.artifacts.artifact import (
    Artifact,
    Found,
    damage_of,
    damage_of_manifest,
    open_artifact,
)
from llama4_pipeline.artifacts.garbage import SCRATCH, UNSENT, Freed, key_of, remove
from llama4_pipeline.artifacts.lease import lease
from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.artifacts.location import COPIES_VARIABLE
from llama4_pipeline.artifacts.manifest import MANIFEST, FileRecord, Manifest, file_sha256, is_unchanged
from llama4_pipeline.artifacts.objects import Objects
from llama4_pipeline.artifacts.publish import lock_of, publish, scratch_name
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Make, Store, naming_a_full_disk
from llama4_pipeline.errors import InputError
from llama4_pipeline.units import format_bytes

_logger = logging.getLogger(__name__)
_FILES = ".files"
_REQUESTS = 8
# Garbage collection leaves what is younger. A file of half that age is uploaded again instead of counted on, so that
# none can go between the moment a builder finds it there and the moment the manifest names it.
_SPARED = timedelta(days=1)


@dataclass(frozen=True)
class SharedArtifact(Artifact):
    """An artifact of the shared store. `directory` brings it to this machine first; `read` only one file."""

    store: "SharedStore" = field(compare=False, repr=False)

    @property
    def directory(self) -> Path:
        """Its directory on this machine, with every file."""
        self.store.bring(self)
        return self.local

    @property
    def place(self) -> str:
        """Where the store keeps its manifest."""
        return f"{self.store.place}/{self.local.relative_to(self.store.root)}"

    def read(self, name: str) -> bytes:
        """The content of one of its files."""
        return self.store.read(self, name)


class SharedStore(Store):
    """Artifacts below a URL. Safe for any number of processes on any number of machines."""

    place_variable = COPIES_VARIABLE

    def __init__(self, url: str, copies: Path) -> None:
        """Opens the store.

        Args:
            url: "s3://BUCKET/PREFIX", or another object store that fsspec knows.
            copies: This machine's directory for copies; processes of one machine share it.

        Raises:
            InputError: The place cannot be reached.
        """
        super().__init__(copies)
        self._objects = Objects(url)

    @property
    def place(self) -> str:
        """Where the artifacts are, as the user named it."""
        return self._objects.url

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact whose manifest can be read."""
        for shelf in self._published():
            if artifact := self._open_shelf(shelf).artifact:
                yield artifact

    def verify(self) -> dict[str, str]:
        """Reads every file of every artifact and every pointer; the places of the damaged, with what is wrong."""
        published = self._published()
        damaged = self._damaged_pointers({PurePath(shelf).parent for shelf in published})
        sound: dict[str, bool] = {}
        for shelf in published:
            found = self._open_shelf(shelf)
            damage = found.damage or (found.artifact and self._damage(found.artifact))
            for record in found.artifact.manifest.files if found.artifact and not damage else ():
                if record.sha256 not in sound:
                    sound[record.sha256] = self._objects.sha256(_object(record)) == record.sha256
                if not sound[record.sha256]:
                    damage = f"{record.path} has other content than was published: remove {self._url(record)}"
            if damage:
                damaged[f"{self.place}/{shelf}"] = damage
        return damaged

    def _require_root(self) -> None:
        """That of the objects was seen when it was opened; here a machine may have no copies yet."""

    def collect_garbage(self) -> Freed:
        """Removes old artifacts that no `latest.json` names, the files that only they held, and unused copies here.

        Copies count in the bytes that are freed, not among the artifacts.
        """
        freed_here = super().collect_garbage().bytes
        for pooled in self._pool().glob("*"):
            state = pooled.stat()
            unused = state.st_nlink == 1
            if pooled.name.startswith(SCRATCH):  # of a killed process, if it is old
                unused = time.time() - state.st_ctime > _SPARED.total_seconds()
            if unused:
                freed_here += state.st_size if state.st_nlink == 1 else 0
                pooled.unlink()
        kept: set[str] = set()
        removed = freed_there = 0
        for shelf in self._published():
            manifest = f"{shelf}/{MANIFEST}"
            if self._is_latest(self.root / shelf) or not self._is_old(manifest, _SPARED):
                found = self._open_shelf(shelf).artifact
                kept |= {record.sha256 for record in found.manifest.files} if found else set()
            else:  # one by one: between a look and its removal a run may take it up
                self._objects.remove([manifest])
                removed += 1
        for name in self._objects.names(_FILES):
            if Path(name).name not in kept and self._is_old(name, _SPARED):
                freed_there += self._objects.size(name) or 0
                self._objects.remove([name])
        return Freed(removed, freed_here + freed_there)

    def bring(self, artifact: Artifact) -> None:
        """Makes sure that this machine has every file of an artifact.

        Raises:
            InputError: The artifact, or a file of it, is gone or damaged; what is damaged is removed.
        """
        if self._is_here(artifact):
            return
        with (
            locks.exclusive(lock_of(artifact.local, self.root)),
            naming_a_full_disk(artifact.stage, self.root, self.place_variable),
        ):
            if not self._is_here(artifact):
                self._download(artifact)

    def read(self, artifact: Artifact, name: str) -> bytes:
        """The content of one file of an artifact.

        Raises:
            InputError: It is gone or damaged; what is damaged is removed.
        """
        if self._is_here(artifact):
            return (artifact.local / name).read_bytes()
        [record] = [record for record in artifact.manifest.files if record.path == name]
        content = self._objects.read(_object(record))
        if content is None:
            raise InputError(self._gone(artifact))
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise InputError(self._discard(artifact, record))
        return content

    def _open(self, recipe: Recipe) -> Found:
        return self._open_shelf(self._directory(recipe).relative_to(self.root).as_posix())

    def _open_shelf(self, shelf: str) -> Found:
        content = self._objects.read(f"{shelf}/{MANIFEST}")
        if content is None:
            return Found()
        try:
            return Found(SharedArtifact(self.root / shelf, Manifest.model_validate_json(content), self))
        except ValidationError:
            return Found(damage=f"{MANIFEST} cannot be read")

    def _damage(self, artifact: Artifact) -> str | None:
        if damage := damage_of_manifest(artifact.manifest):
            return damage
        records = artifact.manifest.files
        with ThreadPoolExecutor(_REQUESTS) as pool:
            sizes = list(pool.map(lambda record: self._objects.size(_object(record)), records))
        for record, size in zip(records, sizes, strict=True):
            if size != record.bytes:
                return f"{record.path} " + (
                    "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
                )
        return None

    @contextmanager
    def _claimed(self, recipe: Recipe, on_wait: Callable[[], None]) -> Iterator[None]:
        name = f".leases/{self._directory(recipe).relative_to(self.root).as_posix()}"
        machine = machine_name(self.root)
        with super()._claimed(recipe, on_wait), lease(self._objects, name, machine, on_wait):
            yield

    @contextmanager
    def _held(self, name: str, recipe: Recipe) -> Iterator[Artifact]:
        artifact = self._require(name, recipe)
        while True:
            with locks.shared(lock_of(artifact.local, self.root)):
                if self._is_here(artifact):
                    yield artifact
                    return
            self.bring(artifact)

    def _make(self, recipe: Recipe, make: Make, known: dict[tuple[int, int], FileRecord]) -> Artifact:
        local = super()._make(recipe, make, known)
        _unsent(local.local).touch()
        return self._send(local)

    def _finish(self, recipe: Recipe) -> Artifact | None:
        directory = self._directory(recipe)
        if not _unsent(directory).exists():
            return None
        local = open_artifact(directory).artifact
        return self._send(local) if local and not damage_of(local, hash_all=True) else None

    def _send(self, local: Artifact) -> Artifact:
        self._upload(local)
        _unsent(local.local).unlink()
        return SharedArtifact(local.local, local.manifest, self)

    def _read_pointer(self, pointer: Path) -> bytes | None:
        return self._objects.read(pointer.relative_to(self.root).as_posix())

    def _write_pointer(self, recipe: Recipe, pointer: Path) -> None:
        content = recipe.model_dump_json(indent=1).encode()
        self._objects.write(pointer.relative_to(self.root).as_posix(), content)

    def _is_latest(self, entry: Path) -> bool:
        """So is what waits to be uploaded: the stage that made it has not come to its end."""
        mark = _unsent(entry)
        if mark.exists() and time.time() - mark.stat().st_mtime < _SPARED.total_seconds():
            return True
        return super()._is_latest(entry)

    def _published(self) -> list[str]:
        """`MODEL/STAGE/KEY` of every manifest."""
        names = (Path(name) for name in self._objects.names() if not name.startswith("."))
        manifests = (name for name in names if name.name == MANIFEST and len(name.parts) == 4)
        return [name.parent.as_posix() for name in manifests if key_of(name.parent)]

    def _upload(self, artifact: Artifact) -> None:
        """Files first, the manifest last: before it, nothing is visible.

        Where an artifact is replaced, none of its objects is counted on: one of them may be why.
        """
        _logger.info("uploading %s to %s", format_bytes(artifact.manifest.bytes), self.place)
        shelf = artifact.local.relative_to(self.root).as_posix()
        replaced = self._objects.size(f"{shelf}/{MANIFEST}") is not None
        for record in artifact.manifest.files:
            there = self._objects.size(_object(record)) == record.bytes
            if replaced or not there or self._is_old(_object(record), _SPARED / 2):
                self._objects.upload(artifact.local / record.path, _object(record))
            self._keep(artifact.local / record.path, record)
        content = artifact.manifest.model_dump_json(indent=1)
        self._objects.write(f"{shelf}/{MANIFEST}", content.encode())

    def _download(self, artifact: Artifact) -> None:
        """Builds the copy in a scratch directory and publishes it here with one rename; the lock is held."""
        _logger.info("bringing %s of %s to this machine", artifact.stage, artifact.model)
        scratch = scratch_name(artifact.local)
        try:
            for record in artifact.manifest.files:
                target = scratch / record.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._bring_file(artifact, record, target)
            publish(scratch, artifact.manifest, artifact.local)
        finally:
            if scratch.exists():
                remove(scratch)

    def _bring_file(self, artifact: Artifact, record: FileRecord, target: Path) -> None:
        pooled = self._pooled(record)
        with suppress(FileNotFoundError):  # never brought, or collected in between
            if is_unchanged(pooled, record):
                link_or_copy(pooled, target)
                return
        if not self._objects.download(_object(record), target):
            raise InputError(self._gone(artifact))
        if file_sha256(target) != record.sha256:
            raise InputError(self._discard(artifact, record))
        os.utime(target, ns=(record.modified_ns, record.modified_ns))
        self._keep(target, record)

    def _keep(self, file: Path, record: FileRecord) -> None:
        """Gives a file a second name, by which later copies link it."""
        pooled = self._pooled(record)
        pooled.parent.mkdir(exist_ok=True)
        beside = scratch_name(pooled)  # other processes of this machine read and write the pool too
        link_or_copy(file, beside)
        beside.replace(pooled)
        beside.unlink(missing_ok=True)  # which stays where both are names of one file

    def _pooled(self, record: FileRecord) -> Path:
        return self._pool() / f"{record.sha256}-{record.modified_ns}"

    def _pool(self) -> Path:
        return self.root / _FILES

    def _is_here(self, artifact: Artifact) -> bool:
        copy = open_artifact(artifact.local).artifact
        return copy is not None and copy.digest == artifact.digest and not damage_of(copy, hash_all=False)

    def _is_old(self, name: str, age: timedelta) -> bool:
        """Whether an object is older, or not there."""
        written = self._objects.modified(name)
        if written is None:
            return True
        return datetime.now(UTC) - written.astimezone(UTC) > age

    def _url(self, record: FileRecord) -> str:
        return f"{self.place}/{_object(record)}"

    def _discard(self, artifact: Artifact, record: FileRecord) -> str:
        """Removes an object whose content is not what its name says, so that its makers run again; tells of it."""
        self._objects.remove([_object(record)])
        return f"{record.path} of {artifact.place} was damaged and is removed: materialize {artifact.stage} again"

    def _gone(self, artifact: Artifact) -> str:
        return f"{artifact.place} is gone: materialize {artifact.stage} again"


def machine_name(copies: Path) -> str:
    """What a machine signs its leases with: processes that share its copies have one name, one word."""
    return f"{platform.node()}:{copies}".replace(" ", "_")


def _unsent(entry: Path) -> Path:
    """A file that is there until what this machine made is uploaded: it need not be made again then."""
    return entry.with_name(f"{UNSENT}{key_of(entry)}")


def _object(record: FileRecord) -> str:
    return f"{_FILES}/{record.sha256}"
