"""Runs a stage, or tells what would run: the decision is the key's, and it is made before any heavy import."""

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.artifacts.code_version import code_version
from llama4_pipeline.artifacts.recipe import Recipe, library_versions
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.builders.measurements import SHORT_OF_MEMORY
from llama4_pipeline.device import Device
from llama4_pipeline.errors import InputError
from llama4_pipeline.preflight import require, room
from llama4_pipeline.stages import STAGES, Stage

if TYPE_CHECKING:
    from llama4_pipeline.catalog import ModelSpec

_logger = logging.getLogger(__name__)

Build = Callable[[Mapping[str, Path], Mapping[str, Any], Path], Mapping[str, Any]]
"""The function of a stage: (inputs: name -> directory, parameters, out) -> facts."""


@dataclass(frozen=True)
class Outcome:
    """What came of a stage: its artifact, whether that was there already, and why it was made or reused."""

    artifact: Artifact
    reused: bool
    reason: str


class State(StrEnum):
    """What would happen to a stage."""

    RUN = "run"
    IF_INPUT_CHANGES = "if its input changes"
    REUSE = "reuse"


@dataclass(frozen=True)
class Decision:
    """What would happen to a stage, and why."""

    stage: str
    state: State
    reason: str


def run_stage(stage: Stage, model: "ModelSpec", store: Store, device: Device, anew: bool = False) -> Outcome:
    """Makes a stage's artifact from the latest artifacts of its inputs, or finds that it is there.

    Args:
        stage: One of `STAGES`.
        model: What it is made for.
        store: Where artifacts live.
        device: Where it may compute.
        anew: Make it even if it is there, for a new measurement.

    Raises:
        InputError: An input was never made, is gone or damaged, or a measurement would be of one that was made for
            another device or from another checkpoint than the rest; memory or disk is short; or the disk is full.
        CheckFailed: The stage's check did not hold; nothing was published.
    """
    deciding = stage.deciding_inputs(model, device)
    sources = {name: store.input_of(model.name, name) for name in deciding}
    digests = {name: sources[name].digest_of(files) for name, files in deciding.items()}
    recipe = recipe_of(stage, model, device, digests)
    again = "measured anew" if anew else None
    if stage.measures:
        _require_made_for(device, model, sources)
        _require_made_from_each_other(stage, model, store, device, sources)
        again = again or _why_again(store.find(recipe).artifact)
    reasons = []

    def make(out: Path) -> Mapping[str, Any]:
        reasons.append(again or _why(store, recipe))
        _logger.info("%s of %s runs: %s", stage.name, model.name, reasons[0])
        needed = model.needs(stage.name, out, device.name)
        if needed is None:
            _logger.warning(
                "whether there is room for %s of %s is not known beforehand: its table in the catalog has no config",
                stage.name,
                model.name,
            )
        else:
            on_gpu = stage.may_use_gpu and device.name == "cuda"
            require(f"{stage.name} of {model.name}", needed, out, on_gpu=on_gpu)
        build = _function(stage.build)
        return build({name: source.local for name, source in sources.items()}, recipe.parameters, out)

    artifact, made = store.get_or_make(recipe, make, sources, anew=again is not None, alone=stage.measures)
    if not made:
        _logger.info("%s of %s is reused: %s", stage.name, model.name, _why_reused(artifact))
    return Outcome(artifact, reused=not made, reason=reasons[0] if made else _why_reused(artifact))


def plan(model: "ModelSpec", store: Store, device: Device) -> list[Decision]:
    """What a run of the whole pipeline would do for a model.

    Whether a rebuilt stage comes out the same is not known beforehand: what stands behind it and needs nothing else is
    `State.IF_INPUT_CHANGES`.
    """
    decisions = []
    made: dict[str, Artifact] = {}
    for stage in STAGES.values():
        inputs = stage.deciding_inputs(model, device)
        open_inputs = [name for name in inputs if name not in made]
        latest = store.latest(model.name, stage.name)
        before = latest.inputs if latest else {}
        digests = {
            name: made[name].digest_of(files) if name in made else before.get(name, "")
            for name, files in inputs.items()
        }
        recipe = recipe_of(stage, model, device, digests)
        found = store.find(recipe).artifact
        if found is None:
            decision = Decision(stage.name, State.RUN, _why(store, recipe))
        elif open_inputs:
            decision = Decision(stage.name, State.IF_INPUT_CHANGES, f"{', '.join(open_inputs)} may change")
        elif again := _why_again(found):
            decision = Decision(stage.name, State.RUN, again)
        else:
            made[stage.name] = found
            decision = Decision(stage.name, State.REUSE, _why_reused(found))
        decisions.append(decision)
    return decisions


def recipe_of(stage: Stage, model: "ModelSpec", device: Device, inputs: Mapping[str, str]) -> Recipe:
    """The recipe of a stage for a model, given the content digests of its inputs."""
    return Recipe(
        stage=stage.name,
        model=model.name,
        code_version=stage_code_version(stage),
        parameters=stage.parameters(model, device),
        inputs=dict(inputs),
        libraries=library_versions(stage.libraries),
        machine=device.machine() if stage.measures else None,
    )


def stage_code_version(stage: Stage) -> str:
    """The version of all code that a stage runs."""
    return code_version(stage.build)[:16]


def _require_made_for(device: Device, model: "ModelSpec", sources: Mapping[str, Artifact]) -> None:
    """A graph for CUDA runs on the CPU too, only otherwise: its figures would stand under the wrong name."""
    for name, source in sources.items():
        made_for = source.manifest.recipe.parameters.get("device", device.name)
        if made_for != device.name:
            raise InputError(
                f"{name} of {model.name} was made for {made_for}, and {device.name} is what is measured here "
                f"({device.reason}): materialize {name} first"
            )


def _require_made_from_each_other(
    stage: Stage, model: "ModelSpec", store: Store, device: Device, sources: Mapping[str, Artifact]
) -> None:
    """A later run may have replaced the checkpoint, say, and have stopped there: the graphs are still of the other."""
    related = dict(sources)
    behind = {name for source in sources.values() for name in source.manifest.recipe.inputs}
    for name in (behind & set(stage.inputs)) - sources.keys():
        latest = store.latest(model.name, name)
        if found := latest and store.find(latest).artifact:
            related[name] = found
    for name, source in related.items():
        read = STAGES[name].deciding_inputs(model, device)
        for upstream, digest in source.manifest.recipe.inputs.items():
            if upstream not in related or upstream not in read:
                continue
            if digest != related[upstream].digest_of(read[upstream]):
                raise InputError(
                    f"{name} of {model.name} was made from another {upstream}, and both are measured here: "
                    f"materialize {name} first"
                )


def _why(store: Store, recipe: Recipe) -> str:
    """Why there is no artifact of a recipe."""
    latest = store.latest(recipe.model, recipe.stage)
    if latest is None:
        return "never built"
    if changes := recipe.changes_since(latest):
        return "; ".join(changes)
    damage = store.find(recipe).damage
    return f"artifact damaged: {damage}" if damage else "artifact deleted"


def _why_again(found: Artifact | None) -> str | None:
    """Why an artifact that is there is made anew: a row of a measurement lacked memory that is free now."""
    short = found.facts.get(SHORT_OF_MEMORY) if found else None
    return "memory that was short is free now" if short and short <= room(Path.cwd()).memory_bytes else None


def _why_reused(artifact: Artifact) -> str:
    return f"nothing it is made from changed since {artifact.manifest.created}"


def _function(dotted: str) -> Build:
    module, _, name = dotted.partition(":")
    build: Build = getattr(importlib.import_module(module), name)
    return build
