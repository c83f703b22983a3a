"""Options and value types that several commands share."""

from pathlib import Path
from typing import Any

import click

from llama4_pipeline.methods import BLOCK_SIZES

BLOCK_SIZES_IN_WORDS = f"{', '.join(map(str, BLOCK_SIZES[:-1]))} or {BLOCK_SIZES[-1]}"

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")


class GraphDirectory(click.ParamType):
    """A directory that holds model.onnx, as `export` writes it."""

    name = "dir"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        directory = Path(value)
        if not directory.is_dir():
            self.fail(f"{value} is not a directory", param, ctx)
        if not (directory / "model.onnx").is_file():
            self.fail(f"{value} has no model.onnx: llama4-pipeline export makes such a directory", param, ctx)
        return directory


class WholeGraphDirectory(GraphDirectory):
    """The same, sound and with all of its weights, where ONNX Runtime would not look for them before any work.

    Looking takes memory that `bench` would count as the engine's.
    """

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from llama4_pipeline.graph.external_data import load_graph, require_valid, require_weights

        directory = super().convert(value, param, ctx)
        model = load_graph(directory)
        require_valid(directory, model)
        require_weights(directory, model)
        return directory


class Text(click.ParamType):
    """A text; the shell may hand on bytes that are none."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not UTF-8", param, ctx)
        return value


class BlockSize(click.ParamType):
    """A number of weights that ONNX Runtime's kernels take to a scale."""

    name = "block size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) not in map(str, BLOCK_SIZES):
            self.fail(f"{value} is no block size: {BLOCK_SIZES_IN_WORDS}", param, ctx)
        return int(value)


_MOST_DIGITS = 18  # of an int64


class Integers(click.ParamType):
    """Positive integers, separated by commas: 1,7,2048."""

    name = "integers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isdecimal() and len(word) <= _MOST_DIGITS and int(word) > 0 for word in words):
            self.fail(f"{value} is not a list of positive integers such as 1,7,2048", param, ctx)
        return tuple(int(word) for word in words)


class Lengths(Integers):
    """A list of integers, or one of two words for a list that depends on the model."""

    name = "lengths"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        return value if value in ("default", "all") else super().convert(value, param, ctx)


OUT = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)
