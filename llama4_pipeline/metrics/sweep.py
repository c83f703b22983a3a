"""How an engine's speed depends on what it is fed: prefill by length, decode by context, throughput by batch."""

import statistics

import numpy as np
from pydantic import BaseModel, ConfigDict

from llama4_pipeline.metrics.latency import time_generation
from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.sampling import GREEDY

_SHORT_PROMPT = 16
_WARM_UP_TOKENS = 4


class Plan(BaseModel):
    """What is measured.

    Attributes:
        prefills: Lengths of prompts.
        contexts: Tokens in the cache before decode is timed.
        batches: Rows that decode together, behind a prompt of 16 tokens.
        new_tokens: Steps of each timed decode.
        warm_up_lengths: Whether a prompt of each length is read before it is timed: a GPU chooses kernels by the first.
    """

    model_config = ConfigDict(frozen=True)

    prefills: tuple[int, ...] = (128, 512)
    contexts: tuple[int, ...] = (16, 2048)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    new_tokens: int = 24
    warm_up_lengths: bool = False


class Sweep(BaseModel):
    """What was measured, greedy, batch 1 but for the throughput.

    Attributes:
        prefill_ms: Prompt tokens -> milliseconds until the first token is chosen.
        decode_ms: Tokens of context -> median milliseconds of a step.
        throughput: Rows -> tokens per second of all rows, from the median step.
        kv_cache_bytes: Allocated when the longest context was in.
        peak_memory_bytes: Most that was held at batch 1.
    """

    model_config = ConfigDict(frozen=True)

    prefill_ms: dict[int, float]
    decode_ms: dict[int, float]
    throughput: dict[int, float]
    kv_cache_bytes: int
    peak_memory_bytes: int


def measure_sweep(decoder: Decoder, plan: Plan, memory: MemoryMeter) -> Sweep:
    """Generates from random prompts and times each token as the caller sees it, after a generation that is discarded.

    Args:
        decoder: the engine; its cache is emptied.
        plan: what to measure.
        memory: a meter made before the engine was opened.

    Raises:
        InputError: more tokens than the decoder holds.
    """
    random = np.random.default_rng(0)

    def generation(batch: int, prompt_tokens: int, new_tokens: int) -> list[float]:
        prompts = random.integers(0, decoder.vocab_size, (batch, prompt_tokens))
        steps = time_generation(decoder, prompts, new_tokens, GREEDY)
        return [1000 * seconds for seconds in steps]

    generation(1, _SHORT_PROMPT, _WARM_UP_TOKENS)
    if plan.warm_up_lengths:
        for length in {*plan.contexts, *plan.prefills}:
            generation(1, length, 1)
    prefill, decode = {}, {}
    for context in sorted(plan.contexts):
        prefill[context], *steps = generation(1, context, plan.new_tokens + 1)
        decode[context] = statistics.median(steps)
    cache_bytes = decoder.cache_bytes()
    for length in plan.prefills:
        [prefill[length]] = generation(1, length, 1)
    peak = memory.peak_bytes()
    throughput = {}
    for batch in plan.batches:
        generation(batch, _SHORT_PROMPT, _WARM_UP_TOKENS)
        _, *steps = generation(batch, _SHORT_PROMPT, plan.new_tokens + 1)
        throughput[batch] = 1000 * batch / statistics.median(steps)
    return Sweep(
        prefill_ms=prefill,
        decode_ms=decode,
        throughput=throughput,
        kv_cache_bytes=cache_bytes,
        peak_memory_bytes=peak,
    )
