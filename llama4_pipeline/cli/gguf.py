"""The command that writes a GGUF file, for llama.cpp."""

import importlib.util
import time
from pathlib import Path

import click

from llama4_pipeline.cli.output_directory import output_file
from llama4_pipeline.cli.parameters import OUT, POSITIVE, json_option
from llama4_pipeline.cli.result import show
from llama4_pipeline.errors import InputError
from llama4_pipeline.units import format_bytes

_LONGEST_DEFAULT_CONTEXT = 4096


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--out", required=True, type=OUT, metavar="FILE", help="GGUF file to make.")
@click.option(
    "--encoding",
    type=click.Choice(["f32", "f16", "q8_0", "q4_0"]),
    default="q4_0",
    show_default=True,
    help="Of every matrix, embedding and output projection too.",
)
@click.option(
    "--max-context",
    type=POSITIVE,
    metavar="N",
    help="Most tokens of prompt and answer; llama.cpp allocates the cache of all of them at once, in every row."
    f"  [default: the model's, at most {_LONGEST_DEFAULT_CONTEXT}]",
)
@json_option
def gguf(checkpoint: str, out: Path, encoding: str, max_context: int | None, as_json: bool) -> None:
    """Write a GGUF file, so that llama.cpp runs the same weights."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError("the package gguf is not installed; pip install 'llama4-pipeline[llamacpp]'")
    if out.exists():
        raise InputError(f"--out {out} is there already: name a new file")
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.llama4.gguf import write_gguf

    source = Checkpoint.open(checkpoint)
    longest = min(source.architecture.max_position_embeddings, _LONGEST_DEFAULT_CONTEXT)
    start = time.monotonic()
    with output_file(out):
        write_gguf(source, out, encoding, max_context or longest)
    size = out.stat().st_size
    record = {"gguf": str(out), "encoding": encoding, "bytes": size, "seconds": time.monotonic() - start}
    show(record, f"{out}: {format_bytes(size)}, {encoding}", as_json)


COMMANDS = (gguf,)
