"""The command that writes a checkpoint out as safetensors, random weights too."""

import time
from pathlib import Path

import click

from llama4_pipeline.cli.output_directory import output_directory
from llama4_pipeline.cli.parameters import OUT, json_option
from llama4_pipeline.cli.result import show
from llama4_pipeline.units import format_bytes


@click.command()
@click.option("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory, or hub id.")
@click.option("--out", required=True, type=OUT, metavar="DIR", help="Checkpoint directory to make.")
@json_option
def shards(checkpoint: str, out: Path, as_json: bool) -> None:
    """Write a checkpoint's weights as safetensors shards with an index; weights made on demand come to lie on disk."""
    from llama4_pipeline.llama4.checkpoint import Checkpoint, write_shards

    source = Checkpoint.open(checkpoint)
    start = time.monotonic()
    with output_directory(out, source.weight_bytes) as result:
        write_shards(source, result)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    record = {
        "checkpoint": str(out),
        "files": files,
        "bytes": source.weight_bytes,
        "seconds": time.monotonic() - start,
    }
    show(record, f"{out}: {format_bytes(source.weight_bytes)} in {len(files)} files", as_json)


COMMANDS = (shards,)
