"""The manifest.json of a graph directory made from the command line: the same as the store writes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.artifacts.artifact import open_artifact
from llama4_pipeline.artifacts.manifest import MANIFEST, describe_directory, write_durably
from llama4_pipeline.artifacts.recipe import Recipe, library_versions
from llama4_pipeline.pipeline import stage_code_version
from llama4_pipeline.stages import STAGES


def write_manifest(
    directory: Path,
    *,
    stage: str,
    model: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    seconds: float,
) -> None:
    """Describes a finished graph directory, last file of all.

    Args:
        directory: what the command wrote.
        stage: the stage of the pipeline that makes such a graph.
        model: name of the checkpoint's or graph's directory.
        parameters: what the command was asked for.
        inputs: name -> content digest of what it was made from, as far as known.
        facts: what the steps reported.
        seconds: wall time.
    """
    recipe = Recipe(
        stage=stage,
        model=re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")[:100] or "model",
        code_version=stage_code_version(STAGES[stage]),
        parameters=dict(parameters),
        inputs=dict(inputs),
        libraries=library_versions(STAGES[stage].libraries),
    )
    manifest = describe_directory(recipe, directory, {}, facts, seconds)
    write_durably(directory / MANIFEST, manifest.model_dump_json(indent=1))


def content_digest_of(graph: Path) -> dict[str, str]:
    """Stage -> digest of a graph directory, from its manifest; empty where it has none that names a stage of ours."""
    artifact = open_artifact(graph).artifact
    return {artifact.stage: artifact.digest} if artifact and artifact.stage in STAGES else {}
