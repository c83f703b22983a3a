"""What an artifact is made from: everything that decides its bytes, and the key that names it."""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NOT_INSTALLED = "not installed"


def is_plain_name(place: PurePath) -> bool:
    """Whether a directory may be that of a model or a stage."""
    return bool(_NAME.fullmatch(place.name))


class Recipe(BaseModel):
    """The ingredients of one artifact: what decides its bytes, as far as anybody can know beforehand.

    Attributes:
        stage: Name of the stage.
        model: Name of the model in the catalog; it chooses the shelf and is no part of the key.
        code_version: Hash of the code that makes the artifact.
        parameters: JSON values that the code is called with.
        inputs: Name of each input stage to the digest of what is read of its artifact.
        libraries: Distribution name to version, for the libraries that shape the bytes.
        machine: Description of the machine, for a measurement; None where any machine makes the same bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    model: str
    code_version: str
    parameters: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    libraries: dict[str, str] = {}
    machine: dict[str, str] | None = None

    @field_validator("stage", "model")
    @classmethod
    def _is_a_plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a directory: use letters, digits, '.', '_' and '-'")
        return value

    @field_validator("parameters")
    @classmethod
    def _as_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Tuples become lists, so that a recipe read back equals the one that was written; a path may be no UTF-8."""
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
        plain: dict[str, Any] = json.loads(text)
        return plain

    def key(self) -> str:
        """The sha256 of the ingredients, in hexadecimal."""
        ingredients = self.model_dump(exclude={"model"})
        text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def changes_since(self, earlier: "Recipe") -> list[str]:
        """What differs from an earlier recipe, one phrase for each ingredient."""
        changes = ["code changed"] if self.code_version != earlier.code_version else []
        for name, before, after in _differences(earlier.parameters, self.parameters):
            changes.append(f"parameter {name}: {_short(before)} -> {_short(after)}")
        changes += [f"input {name} changed" for name, _, _ in _differences(earlier.inputs, self.inputs)]
        for name, before, after in _differences(earlier.libraries, self.libraries):
            changes.append(f"library {name}: {before} -> {after}")
        for name, before, after in _differences(earlier.machine or {}, self.machine or {}):
            changes.append(f"machine {name}: {before} -> {after}")
        return changes


def library_versions(distributions: Iterable[str]) -> dict[str, str]:
    """The installed version of each distribution, read without importing it.

    `a|b` asks for the first of several distributions that provide one module (onnxruntime, onnxruntime-gpu).
    An absent one is recorded as such, because its arrival may change what a stage does. `python` is the
    interpreter.
    """
    return dict(_first_installed(names.split("|")) for names in distributions)


def _first_installed(names: list[str]) -> tuple[str, str]:
    if names == ["python"]:
        return "python", platform.python_version()
    for name in names:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return names[0], _NOT_INSTALLED


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names, those inside a table behind its own, with both values."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{within}{name}.")
        elif old != new:
            yield f"{within}{name}", old, new


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
