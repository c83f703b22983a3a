"""A graph and a checkpoint are held against each other only if they are of one model."""

from dataclasses import fields
from itertools import zip_longest
from pathlib import Path

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config


def require_same_model(graph: Path, checkpoint: str, architecture: Architecture) -> None:
    """Compares the configuration in a graph directory with a checkpoint's.

    Raises:
        InputError: names the first key that differs, with both values; of layers, the first that differ.
    """
    of_graph = Architecture.from_config(read_text_config(graph))
    for field in fields(Architecture):
        here, there = getattr(of_graph, field.name), getattr(architecture, field.name)
        if here != there:
            if field.name == "layers":
                here, there = next(pair for pair in zip_longest(here, there) if pair[0] != pair[1])
            raise InputError(
                f"{graph} and {checkpoint} are of different models: {field.name} is {here} and {there}; "
                "give the checkpoint that the graph was exported from"
            )
