"""A graph and a checkpoint are held against each other only if they are of one model."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture, Layer
from llama4_pipeline.llama4.checkpoint_directory import read_text_config


def require_same_model(graph: Path, checkpoint: str, architecture: Architecture) -> None:
    """Compares the configuration in a graph directory with a checkpoint's; imports transformers, which knows rotations.

    Args:
        graph: directory of the graph.
        checkpoint: directory or hub id.
        architecture: of the checkpoint.

    Raises:
        InputError: names the first key that differs, with both values; of layers, the first key of them.
    """
    of_graph = Architecture.from_config(read_text_config(graph))
    for field in fields(Architecture):
        here, there = getattr(of_graph, field.name), getattr(architecture, field.name)
        if here != there:
            name = field.name
            if name == "layers":
                name, here, there = _first_difference(here, there)
            raise _different(graph, checkpoint, name, here, there)
    if any(layer.uses_rope for layer in architecture.layers):
        _require_same_rotation(graph, checkpoint)


def _first_difference(here: Sequence[Layer], there: Sequence[Layer]) -> tuple[str, Any, Any]:
    for one, other in zip(here, there, strict=False):
        for field in fields(Layer):
            pair = getattr(one, field.name), getattr(other, field.name)
            if pair[0] != pair[1]:
                return f"{field.name} of layer {one.index}", *pair
    return "the number of layers", len(here), len(there)


def _require_same_rotation(graph: Path, checkpoint: str) -> None:
    """Compares what the keys of a rotation come to: there are several ways to write the same one."""
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    pair = [Checkpoint.open(place, with_weights=False) for place in (graph, checkpoint)]
    (here, factor), (there, other_factor) = (each.rotary_frequencies() for each in pair)
    if factor != other_factor or not here.equal(there):
        raise _different(
            graph, checkpoint, "rope_parameters", *(each.config.rope_parameters for each in pair)
        )


def _different(graph: Path, checkpoint: str, key: str, here: Any, there: Any) -> InputError:
    return InputError(
        f"{graph} and {checkpoint} are of different models: {key} is {here} and {there}; "
        "give the checkpoint that the graph was exported from"
    )
