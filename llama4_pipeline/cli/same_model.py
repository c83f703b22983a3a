"""A graph and a checkpoint are held against each other only if they are of one model."""

from dataclasses import fields
from pathlib import Path

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config


def require_same_model(graph: Path, checkpoint: str, architecture: Architecture) -> None:
    """Compares the configuration in a graph directory with a checkpoint's.

    Raises:
        InputError: names the first key that differs, with both values.
    """
    of_graph = Architecture.from_config(read_text_config(graph))
    for field in fields(Architecture):
        here, there = getattr(of_graph, field.name), getattr(architecture, field.name)
        if here != there:
            raise InputError(
                f"{graph} and {checkpoint} are of different models: {field.name} is {here} and {there}; "
                "give the checkpoint that the graph was exported from"
            )
