"""Commands that run a model: bench, eval, generate."""

import time
from pathlib import Path

import click

from llama4_pipeline.cli.parameters import (
    POSITIVE,
    GraphDirectory,
    Integers,
    Text,
    WholeGraphDirectory,
    json_option,
)
from llama4_pipeline.cli.result import as_lines, show
from llama4_pipeline.cli.same_model import require_same_model
from llama4_pipeline.device import find_device
from llama4_pipeline.errors import InputError
from llama4_pipeline.needs import judging_needs
from llama4_pipeline.preflight import graph_bytes, require

_THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="To compute with.  [default: all cores]"
)
_DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where it is, else cpu]"
)


@click.command()
@click.option("--graph", type=GraphDirectory(), metavar="DIR", help="ONNX directory, for onnxruntime.")
@click.option(
    "--checkpoint", metavar="DIR", help="Hugging Face directory, hub id or GGUF file, for other engines."
)
@click.option("--engine", metavar="NAME", help="[default: onnxruntime for a graph, pytorch for a checkpoint]")
@click.option("--prompt-tokens", type=POSITIVE, default=128, show_default=True, metavar="N")
@click.option("--new-tokens", type=click.IntRange(min=2), default=64, show_default=True, metavar="N")
@click.option(
    "--batch", type=Integers(), default="1", show_default=True, metavar="N,N,...", help="For throughput."
)
@click.option(
    "--repeats", type=POSITIVE, default=3, show_default=True, metavar="N", help="Timed generations."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="To run a checkpoint in; a graph and a GGUF file have their own.  [default: float32]",
)
@_THREADS
@_DEVICE
@click.option("--model", metavar="NAME", help="Name in the record.  [default: the directory's]")
@json_option
def bench(
    graph: Path | None,
    checkpoint: str | None,
    engine: str | None,
    prompt_tokens: int,
    new_tokens: int,
    batch: tuple[int, ...],
    repeats: int,
    dtype: str | None,
    threads: int | None,
    device: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Measure one engine: latency, throughput, memory, roofline."""
    if (graph is None) == (checkpoint is None):
        raise InputError("bench measures one model: give --graph or --checkpoint, and not both")
    from llama4_pipeline.metrics.bench import bench as measure
    from llama4_pipeline.runtime.engines import find_engine

    if engine is None:
        engine = "onnxruntime" if graph else "pytorch"
    if dtype and find_engine(engine).runs != "checkpoint":
        raise InputError(f"{engine} runs a model in the types of its file: leave out --dtype")
    measurement = measure(
        engine=engine,
        graph=graph,
        checkpoint=checkpoint,
        model=model,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        repeats=repeats,
        dtype=dtype or "float32",
        threads=threads or 0,
        device=device or find_device().name,
    )
    record = measurement.model_dump(mode="json")
    show(record, as_lines(record), as_json)


@click.command(name="eval")
@click.option(
    "--graph", type=WholeGraphDirectory(), required=True, metavar="DIR", help="ONNX directory to judge."
)
@click.option("--checkpoint", metavar="DIR", help="Its PyTorch original, to measure the divergence from.")
@click.option(
    "--data", required=True, metavar="DATA", help="A text, JSONL or Parquet file, or datasets:NAME:SPLIT."
)
@_THREADS
@_DEVICE
@json_option
def evaluate(
    graph: Path, checkpoint: str | None, data: str, threads: int | None, device: str | None, as_json: bool
) -> None:
    """Measure quality: perplexity, divergence, ROUGE, accuracy."""
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.metrics.evaluate import evaluate_graph

    where = device or find_device().name
    if checkpoint:
        architecture = Checkpoint.open(checkpoint).architecture
        require_same_model(graph, checkpoint, architecture)
        if where == "cpu":
            require("this evaluation", judging_needs(graph_bytes(graph), architecture), graph)
    quality = evaluate_graph(graph, data, checkpoint, threads=threads or 0, device=where)
    record = quality.model_dump(mode="json")
    show(record, as_lines(record), as_json)


@click.command()
@click.option("--graph", type=WholeGraphDirectory(), required=True, metavar="DIR", help="ONNX directory.")
@click.option("--prompt", required=True, type=Text(), metavar="TEXT")
@click.option("--max-new-tokens", type=POSITIVE, default=128, show_default=True, metavar="N")
@click.option("--chat", is_flag=True, help="The prompt is a user's message, in the model's chat template.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-k", type=POSITIVE, metavar="N", help="Draw from the N likeliest tokens.  [default: all]")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Draw from the likeliest tokens that make up probability P.  [default: all]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the draws."
)
@_DEVICE
@json_option
def generate(
    graph: Path,
    prompt: str,
    max_new_tokens: int,
    chat: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Continue a text or answer a message, streamed to standard output."""
    if temperature == 0 and (top_k or top_p):
        raise InputError("--top-k and --top-p are for draws, of which there are none: give --temperature too")
    from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
    from llama4_pipeline.runtime.engines import open_decoder
    from llama4_pipeline.runtime.sampling import Sampling
    from llama4_pipeline.runtime.text import chat_prompt, generate_text

    sampling = Sampling(temperature=temperature, top_k=top_k or 0, top_p=top_p or 1.0)
    tokenizer = load_tokenizer(graph)
    ids = chat_prompt(tokenizer, prompt, graph) if chat else tokenizer(prompt)["input_ids"]
    decoder = open_decoder("onnxruntime", graph=graph, device=device or find_device().name)
    start = time.monotonic()
    pieces = []
    for piece in generate_text(
        decoder,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_tokens=read_stop_tokens(graph),
        seed=seed,
    ):
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    show({"prompt": prompt, "text": "".join(pieces), "seconds": time.monotonic() - start}, "", as_json)


COMMANDS = (bench, evaluate, generate)
