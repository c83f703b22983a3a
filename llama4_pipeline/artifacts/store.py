"""The content-addressed store: one directory per artifact, published whole or not at all.

    <root>/<model>/<stage>/<first 16 characters of the key>/    files and manifest.json
    <root>/<model>/<stage>/latest.json                          the recipe used last: what later stages read
    <root>/.locks/                                              one file per key, locked while it is built

A directory without a manifest is no artifact, and the manifest is written last. What `SharedStore` does otherwise
is what the methods from `_open` to `_finish` do, and how pointers are read and written.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from llama4_pipeline.artifacts import locks
from llama4_pipeline.artifacts.artifact import (
    Artifact,
    Found,
    damage_of,
    files_by_inode,
    open_artifact,
    stranger_in,
)
from llama4_pipeline.artifacts.garbage import DISCARDED, SCRATCH, Freed, free, key_of, remove
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.manifest import (
    MANIFEST,
    FileRecord,
    describe_directory,
    sync,
    write_durably,
)
from llama4_pipeline.artifacts.publish import lock_of, publish, scratch_name
from llama4_pipeline.artifacts.recipe import Recipe, is_plain_name
from llama4_pipeline.errors import InputError
from llama4_pipeline.full_disk import is_out_of_space

_logger = logging.getLogger(__name__)
_LATEST = "latest.json"
_ALWAYS_HASHED_BELOW = 1 << 30

Make = Callable[[Path], Mapping[str, Any]]
"""Writes the files of an artifact into an empty directory and returns what it has to report."""


class Store:
    """Artifacts below one directory of the local file system. Safe for any number of processes.

    Attributes:
        root: The directory.
        place_variable: The environment variable that names it.
    """

    place_variable = ARTIFACTS_VARIABLE

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def place(self) -> str:
        """Where the artifacts are, as the user named it."""
        return str(self.root)

    def find(self, recipe: Recipe) -> Found:
        """Looks for the artifact of a recipe and tests it the cheap way.

        The cheap test: the manifest reads and fits the recipe, every file has its recorded size. A file is
        hashed again if its time of modification changed, or if the whole artifact is smaller than 1 GiB. So
        what it cannot see is a large file whose bytes changed behind the file system's back; `verify` sees
        that too.
        """
        found = self._open(recipe)
        if found.artifact is None:
            return found
        if found.artifact.manifest.recipe != recipe:
            return Found(damage=f"{MANIFEST}: belongs to another recipe")
        damage = self._damage(found.artifact)
        return Found(damage=damage) if damage else found

    def get_or_make(
        self,
        recipe: Recipe,
        make: Make,
        inputs: Mapping[str, Artifact] | None = None,
        anew: bool = False,
        alone: bool = False,
    ) -> tuple[Artifact, bool]:
        """The artifact of a recipe, the one that is there or a new one; it becomes the latest of its stage.

        Of several callers with one recipe, in any number of processes, one makes it and the others wait and
        get the same. Neither it nor its inputs can be collected meanwhile.

        Args:
            recipe: What to make.
            make: Writes the files into the directory it is given, returns JSON values for `Manifest.facts`.
            inputs: What `make` reads, by name.
            anew: Make it even if it is there; a measurement is repeated so.
            alone: Make it while nothing else is made in this store: a measurement wants the machine for
                itself.

        Returns:
            The artifact, and whether this call made it.

        Raises:
            InputError: An input is missing, damaged or no longer what was given, or the disk is full.
        """

        def say_waiting() -> None:
            _logger.info("%s of %s is in use elsewhere; waiting for it", recipe.stage, recipe.model)

        lock = lock_of(self._directory(recipe), self.root)
        if not anew:
            with (
                naming_a_full_disk(recipe.stage, self.root, self.place_variable),
                locks.shared(lock, say_waiting),
            ):
                if artifact := self.find(recipe).artifact:
                    self._set_latest(recipe)
                    return artifact, False
        with naming_a_full_disk(recipe.stage, self.root, self.place_variable), ExitStack() as held:
            held.enter_context(self._claimed(recipe, say_waiting))
            artifact = None if anew else self.find(recipe).artifact or self._finish(recipe)
            made = artifact is None
            if artifact is None:
                known: dict[tuple[int, int], FileRecord] = {}
                for name, source in (inputs or {}).items():
                    read = held.enter_context(self._held(name, source.manifest.recipe))
                    if read.digest != source.digest:
                        raise InputError(f"{name} of {recipe.model} was made anew meanwhile: run it again")
                    known |= files_by_inode(read)
                held.enter_context(self._machine(alone))
                artifact = self._make(recipe, make, known)
            self._set_latest(recipe)
            return artifact, made

    def input_of(self, model: str, stage: str) -> Artifact:
        """The latest artifact of a stage, for a later stage to start from; its files are not looked at yet.

        Raises:
            InputError: It was never made, or is gone.
        """
        recipe = self.latest(model, stage)
        artifact = self._open(recipe).artifact if recipe else None
        if recipe and artifact is None:  # for a moment, perhaps, while a new one takes its place
            with self._unchanging(self._directory(recipe)):
                artifact = self._open(recipe).artifact
        if artifact is None:
            state = "is gone" if recipe else "has not been built"
            raise InputError(f"{stage} of {model} {state}: materialize {stage} first")
        return artifact

    def latest(self, model: str, stage: str) -> Recipe | None:
        """The recipe that the pipeline used last for a stage, whether or not its artifact still stands.

        Raises:
            InputError: The record of it is damaged.
        """
        pointer = self._shelf(model, stage) / _LATEST
        content = self._read_pointer(pointer)
        try:
            return None if content is None else Recipe.model_validate_json(content)
        except ValidationError as error:
            name = pointer.relative_to(self.root)
            raise InputError(f"{self.place}/{name} is damaged: remove it and run {stage} again") from error

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact whose manifest can be read."""
        for directory in self._directories():
            if artifact := open_artifact(directory).artifact:
                yield artifact

    def verify(self) -> dict[str, str]:
        """Hashes every file of every artifact, reads every pointer; the places of the damaged, with what is wrong."""
        self._require_root()
        used = (shelf for shelf in self._shelves() if (shelf / _LATEST).exists())
        damaged = self._damaged_pointers({shelf.relative_to(self.root) for shelf in used})
        for directory in self._directories():
            with self._unchanging(directory):
                found = open_artifact(directory)
                if found.artifact:
                    _logger.info("verifying %s", directory.relative_to(self.root))
                    damage = damage_of(found.artifact, hash_all=True) or stranger_in(found.artifact)
                    found = Found(damage=damage)
                if found.damage:
                    damaged[str(directory)] = found.damage
        return damaged

    def _damaged_pointers(self, shelves: Collection[PurePath]) -> dict[str, str]:
        """Of shelves, MODEL/STAGE."""
        damaged = {}
        for shelf in sorted(shelves):
            try:
                self.latest(*shelf.parts)
            except InputError as error:
                damaged[f"{self.place}/{shelf.as_posix()}/{_LATEST}"] = str(error)
        return damaged

    def collect_garbage(self) -> Freed:
        """Removes what no `latest.json` names and nobody holds, and what killed builders left."""
        self._require_root()
        freed = Freed(0, 0)
        for shelf in self._shelves():
            for entry in sorted(shelf.iterdir()):
                if not key_of(entry):
                    continue
                with locks.exclusive_if_free(lock_of(entry, self.root)) as ours:
                    if ours and entry.exists() and not self._is_latest(entry):
                        freed += free(entry)
        return freed

    def _make(self, recipe: Recipe, make: Make, known: dict[tuple[int, int], FileRecord]) -> Artifact:
        """Builds in a scratch directory beside the target and publishes with one rename; the lock is held."""
        target = self._directory(recipe)
        for prefix in (SCRATCH, DISCARDED):
            for leftover in target.parent.glob(f"{prefix}{target.name}-*"):
                remove(leftover)
        scratch = scratch_name(target)
        try:
            scratch.mkdir(parents=True)
            start = time.monotonic()
            facts = make(scratch)
            manifest = describe_directory(recipe, scratch, known, facts, time.monotonic() - start)
            publish(scratch, manifest, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Artifact(target, manifest)

    def _finish(self, recipe: Recipe) -> Artifact | None:
        """What an earlier call made and could not publish; the lock is held."""
        return None

    def _machine(self, alone: bool) -> AbstractContextManager[None]:
        """Taken behind all other locks, so that whoever has it waits for nobody."""
        lock = self.root / ".locks" / "machine"
        if alone:
            return locks.exclusive(
                lock, lambda: _logger.info("waiting for other stages to end before measuring")
            )
        return locks.shared(lock, lambda: _logger.info("waiting for a measurement to end"))

    def _open(self, recipe: Recipe) -> Found:
        return open_artifact(self._directory(recipe))

    def _damage(self, artifact: Artifact) -> str | None:
        return damage_of(artifact, hash_all=artifact.manifest.bytes < _ALWAYS_HASHED_BELOW)

    def _claimed(self, recipe: Recipe, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """The right to make an artifact, which one process at a time has."""
        return locks.exclusive(lock_of(self._directory(recipe), self.root), on_wait)

    @contextmanager
    def _held(self, name: str, recipe: Recipe) -> Iterator[Artifact]:
        """An input, on this machine, kept from removal."""
        with locks.shared(lock_of(self._directory(recipe), self.root)):
            yield self._require(name, recipe)

    def _require(self, name: str, recipe: Recipe) -> Artifact:
        found = self.find(recipe)
        if found.artifact is None:
            state = f"is damaged ({found.damage})" if found.damage else "is gone"
            raise InputError(f"{name} of {recipe.model} {state}: materialize {name} again")
        return found.artifact

    def _set_latest(self, recipe: Recipe) -> None:
        """Makes a recipe the one that later stages take their input from; the lock is held."""
        if self.latest(recipe.model, recipe.stage) == recipe:
            return
        self._write_pointer(recipe, self._directory(recipe).with_name(_LATEST))

    def _read_pointer(self, pointer: Path) -> bytes | None:
        try:
            return pointer.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{pointer} cannot be read ({error.strerror}): put right what stands there"
            ) from error

    def _write_pointer(self, recipe: Recipe, pointer: Path) -> None:
        scratch = scratch_name(self._directory(recipe))
        write_durably(scratch, recipe.model_dump_json(indent=1))
        scratch.replace(pointer)
        sync(pointer.parent)

    def _is_latest(self, entry: Path) -> bool:
        latest = self.latest(entry.parent.parent.name, entry.parent.name)
        return latest is not None and self._directory(latest) == entry

    def _unchanging(self, directory: Path) -> AbstractContextManager[None]:
        """Nothing of an artifact comes or goes meanwhile; of a store that this process cannot write, nobody knows."""
        if not os.access(self.root, os.W_OK):
            return nullcontext()
        name = directory.relative_to(self.root)
        return locks.shared(
            lock_of(directory, self.root),
            lambda: _logger.info("%s is in use elsewhere; waiting for it", name),
        )

    def _require_root(self) -> None:
        """A name that was typed wrong is no empty store."""
        if not self.root.is_dir():
            raise InputError(
                f"{self.root}: no store is there; {self.place_variable} names the one that is meant"
            )

    def _shelves(self) -> Iterator[Path]:
        """MODEL/STAGE; a directory that no recipe names is none of the store's."""
        for model in filter(is_plain_name, _visible(self.root)):
            yield from (shelf for shelf in filter(is_plain_name, _visible(model)) if shelf.is_dir())

    def _directories(self) -> Iterator[Path]:
        for shelf in self._shelves():
            yield from (entry for entry in _visible(shelf) if key_of(entry) and entry.is_dir())

    def _shelf(self, model: str, stage: str) -> Path:
        checked = Recipe(stage=stage, model=model, code_version="")
        return self.root / checked.model / checked.stage

    def _directory(self, recipe: Recipe) -> Path:
        return self._shelf(recipe.model, recipe.stage) / recipe.key()[:16]


def _visible(directory: Path) -> list[Path]:
    """What lies in a directory, in order; a hidden file is none of the store's.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{directory} cannot be read ({error.strerror}): see to its permissions") from error


@contextmanager
def naming_a_full_disk(what: str, directory: Path | str, variable: str) -> Iterator[None]:
    """Tells of a full disk with what was to be written, where, and the variable that names another place."""
    try:
        yield
    except Exception as error:
        if not is_out_of_space(error):
            raise
        raise InputError(
            f"no space left for {what} in {directory}: free some (`llama4-pipeline store gc`) or let {variable} "
            "name another disk"
        ) from error
