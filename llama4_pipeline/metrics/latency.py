"""How fast an engine is: time to first token, milliseconds per token, tokens per second by batch."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.measurement import Percentiles
from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.progress import Progress
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.generate import generate
from llama4_pipeline.runtime.sampling import GREEDY, Sampling

BENCHMARK_SAMPLING = Sampling(temperature=0.8, top_k=50, top_p=0.95)
_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Latency:
    """Figures of one engine; single figures are medians over the repeats at batch 1.

    Attributes:
        time_to_first_token_ms: Prefill of the prompt and the choice of a token.
        prefill_tokens_per_second: Prompt tokens over that time.
        decode_tokens_per_second: One over the median step, greedy.
        decode_latency_ms: Steps of all repeats, greedy.
        sampling_latency_ms: Steps of all repeats, with `BENCHMARK_SAMPLING`.
        throughput: Batch size -> tokens per second of all rows, decode steps only, greedy.
        cache_bytes: Allocated at batch 1 when the last token was out.
        peak_memory_bytes: Until then, sampling included; None without a meter.
    """

    time_to_first_token_ms: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_latency_ms: Percentiles
    sampling_latency_ms: Percentiles
    throughput: dict[int, float]
    cache_bytes: int
    peak_memory_bytes: int | None


def measure_decoder(
    decoder: Decoder,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 3,
    memory: MemoryMeter | None = None,
) -> Latency:
    """Generates from random prompts and times each token as the caller sees it.

    Args:
        decoder: the engine; its cache is emptied.
        prompt_tokens: length of each prompt.
        new_tokens: tokens to generate, at least 2: the first comes from the prefill.
        batch_sizes: for `throughput`; latencies are always measured at batch 1.
        repeats: timed generations of each kind, after one that is discarded.

    Raises:
        InputError: too few tokens, or more than the decoder holds.
    """
    if new_tokens < 2 or prompt_tokens < 1 or repeats < 1:
        raise InputError(
            f"{prompt_tokens} prompt and {new_tokens} new tokens, {repeats} repeats: give 1, 2 and 1 or more"
        )
    if prompt_tokens + new_tokens > decoder.max_context:
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens do not fit the model's context of {decoder.max_context}; "
            "ask for fewer"
        )
    runs = _Runs(decoder, prompt_tokens, new_tokens, repeats)
    others = sorted({size for size in batch_sizes if size != 1})
    with Progress(
        f"measure {decoder.engine}", total=(2 + len(others)) * (repeats + 1), unit="runs"
    ) as progress:
        greedy = runs.time(1, GREEDY, progress)
        cache_bytes = decoder.cache_bytes()
        sampled = runs.time(1, BENCHMARK_SAMPLING, progress)
        peak = memory.peak_bytes() if memory else None
        batched = {size: runs.time(size, GREEDY, progress) for size in others}
    steps = _milliseconds(greedy)
    first = statistics.median(run[0] for run in greedy)
    return Latency(
        time_to_first_token_ms=1000 * first,
        prefill_tokens_per_second=prompt_tokens / first,
        decode_tokens_per_second=1000 / statistics.median(steps),
        decode_latency_ms=_percentiles(steps),
        sampling_latency_ms=_percentiles(_milliseconds(sampled)),
        throughput={
            size: _throughput(size, run)
            for size, run in ({1: greedy} | batched).items()
            if size in batch_sizes
        },
        cache_bytes=cache_bytes,
        peak_memory_bytes=peak,
    )


def time_generation(
    decoder: Decoder, prompts: np.ndarray, new_tokens: int, sampling: Sampling
) -> list[float]:
    """Seconds of each step of one generation from int64 [B, S]; the first is the prefill. Empties the cache before."""
    decoder.reset()
    seconds = []
    last = time.perf_counter()
    for _ in generate(decoder, prompts, max_new_tokens=new_tokens, sampling=sampling):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds


class _Runs:
    def __init__(self, decoder: Decoder, prompt_tokens: int, new_tokens: int, repeats: int) -> None:
        self._decoder, self._new_tokens, self._repeats = decoder, new_tokens, repeats
        self._prompt_tokens = prompt_tokens
        self._random = np.random.default_rng(0)

    def time(self, batch: int, sampling: Sampling, progress: Progress) -> list[list[float]]:
        """Seconds of each step of each repeat; the first step of a run is the prefill."""
        self._run(batch, sampling, min(_WARM_UP_TOKENS, self._new_tokens))
        progress.advance()
        timed = []
        for _ in range(self._repeats):
            timed.append(self._run(batch, sampling, self._new_tokens))
            progress.advance()
        return timed

    def _run(self, batch: int, sampling: Sampling, new_tokens: int) -> list[float]:
        prompts = self._random.integers(0, self._decoder.vocab_size, (batch, self._prompt_tokens))
        return time_generation(self._decoder, prompts, new_tokens, sampling)


def _milliseconds(runs: list[list[float]]) -> list[float]:
    return [1000 * step for run in runs for step in run[1:]]


def _percentiles(milliseconds: list[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99]).tolist()
    return Percentiles(p50=p50, p90=p90, p99=p99)


def _throughput(batch: int, runs: list[list[float]]) -> float:
    return statistics.median(batch * (len(run) - 1) / sum(run[1:]) for run in runs)
