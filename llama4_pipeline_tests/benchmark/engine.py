"""One engine in this process: `python -m llama4_pipeline_tests.benchmark.engine REQUEST` prints a `Run` as JSON."""

import logging
import sys
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from llama4_pipeline.errors import CheckFailed
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.metrics.bench import engine_facts
from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.metrics.roofline import cache_read_bytes
from llama4_pipeline.metrics.sweep import Plan, measure_sweep
from llama4_pipeline.runtime.decoder import Decoder, GeneratesItself
from llama4_pipeline.runtime.engines import find_engine, open_decoder
from llama4_pipeline_tests.benchmark.record import Run

_PROMPT, _STEPS = 16, 8
_MOST_STEP_ERROR = 0.5  # logits that have nothing to do with each other have 1.4


class Request(BaseModel):
    """What to open and how much to measure."""

    engine: str
    path: Path
    dtype: str
    threads: int
    device: str
    plan: Plan


def run(request: Request) -> Run:
    """Opens and measures an engine.

    Raises:
        CheckFailed: its steps compute something else than its prompts, so that their speed means nothing.
    """
    facts = engine_facts(request.engine, request.path, request.dtype)
    assert facts.stored is not None and isinstance(facts.architecture, Architecture)
    which = "graph" if find_engine(request.engine).runs == "graph" else "checkpoint"
    memory = MemoryMeter(request.device)
    start = time.perf_counter()
    decoder = open_decoder(
        request.engine,
        graph=request.path if which == "graph" else None,
        checkpoint=request.path if which == "checkpoint" else None,
        dtype=request.dtype,
        threads=request.threads,
        device=request.device,
    )
    load_seconds = time.perf_counter() - start
    sweep = measure_sweep(decoder, request.plan, memory)
    error = None if isinstance(decoder, GeneratesItself) else step_error(decoder)
    if error is not None and not error <= _MOST_STEP_ERROR:
        raise CheckFailed(
            f"{facts.title}: logits of steps differ from those of a prompt by {error:.2g} of their size"
        )
    return Run(
        title=facts.title,
        load_seconds=load_seconds,
        sweep=sweep,
        providers=decoder.providers(),
        model_bytes=facts.model_bytes,
        active_weight_bytes=facts.stored.active_bytes,
        cache_read_bytes={
            context: cache_read_bytes(
                facts.architecture, context, request.plan.new_tokens + 1, facts.stored.cache_element_bytes
            )
            for context in request.plan.contexts
        },
        step_error=error,
    )


def step_error(decoder: Decoder) -> float:
    """Distance of logits read step by step from those of one prompt, over their norm; median over the steps.

    The steps of a second generation, since the prompt between may have changed what the first ones left captured.
    """
    ids = np.random.default_rng(1).integers(0, decoder.vocab_size, (1, _PROMPT + _STEPS))
    for _ in range(2):
        decoder.reset()
        whole = decoder.forward(ids)[0, _PROMPT:]
        decoder.reset()
        decoder.forward(ids[:, :_PROMPT])
        stepped = [decoder.forward(ids[:, i : i + 1])[0, 0] for i in range(_PROMPT, _PROMPT + _STEPS)]
    distances = np.linalg.norm(np.stack(stepped) - whole, axis=-1) / np.linalg.norm(whole, axis=-1)
    return float(np.median(distances))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    print(run(Request.model_validate_json(sys.argv[1])).model_dump_json())
