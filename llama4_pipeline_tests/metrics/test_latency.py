"""Latency of an engine whose speed is known, and of a real one."""

import time

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.latency import measure_decoder

PREFILL_SECONDS, STEP_SECONDS = 0.02, 0.004


class MeteredDecoder:
    """A real decoder loop over an engine that takes a known time: sleeps, then says the same logits always."""

    engine, vocab_size, max_context = "metered", 17, 64

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.reset()

    def reset(self) -> None:
        self.mask = np.zeros((0, 0), dtype=np.int64)

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0):
        batch, new = input_ids.shape
        self.calls.append((batch, new))
        time.sleep(PREFILL_SECONDS if new > 1 else STEP_SECONDS)
        self.mask = np.ones((batch, self.mask.shape[1] + new), dtype=np.int64)
        return np.zeros((batch, 1, self.vocab_size), dtype=np.float32)

    def cache_bytes(self) -> int:
        return self.mask.size * 10

    def providers(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def test_figures_are_those_of_the_engine():
    decoder = MeteredDecoder()
    latency = measure_decoder(decoder, prompt_tokens=10, new_tokens=8, batch_sizes=(1, 2), repeats=2)
    assert latency.time_to_first_token_ms >= 1000 * PREFILL_SECONDS
    assert latency.prefill_tokens_per_second == pytest.approx(10_000 / latency.time_to_first_token_ms)
    assert latency.decode_latency_ms.p50 >= 1000 * STEP_SECONDS
    assert latency.decode_latency_ms.p50 <= latency.decode_latency_ms.p90 <= latency.decode_latency_ms.p99
    assert latency.sampling_latency_ms.p50 >= 1000 * STEP_SECONDS
    assert latency.decode_tokens_per_second == pytest.approx(1000 / latency.decode_latency_ms.p50)
    assert 0 < latency.throughput[1] <= 1 / STEP_SECONDS
    assert latency.throughput[1] < latency.throughput[2] <= 2 / STEP_SECONDS
    assert latency.cache_bytes == 10 * (10 + 7)
    assert latency.peak_memory_bytes is None


def test_the_peak_of_memory_is_that_of_batch_1():
    decoder = MeteredDecoder()

    class Meter:
        def peak_bytes(self) -> int:
            return max(batch for batch, _ in decoder.calls)

    latency = measure_decoder(
        decoder, prompt_tokens=4, new_tokens=2, batch_sizes=(1, 8), repeats=1, memory=Meter()
    )
    assert latency.peak_memory_bytes == 1
    assert max(batch for batch, _ in decoder.calls) == 8


def test_the_prefill_is_no_step(monkeypatch):
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    latency = measure_decoder(MeteredDecoder(), prompt_tokens=10, new_tokens=2, repeats=2)
    assert latency.time_to_first_token_ms == pytest.approx(1000 * PREFILL_SECONDS)
    steps = pytest.approx(dict.fromkeys(("p50", "p90", "p99"), 1000 * STEP_SECONDS))
    assert latency.decode_latency_ms.model_dump() == steps
    assert latency.sampling_latency_ms.model_dump() == steps
    assert latency.throughput[1] == pytest.approx(1 / STEP_SECONDS)


def test_one_generation_of_each_kind_is_discarded():
    decoder = MeteredDecoder()
    measure_decoder(decoder, prompt_tokens=10, new_tokens=8, batch_sizes=(2,), repeats=2)
    assert decoder.calls.count((1, 10)) == 2 * (1 + 2)  # greedy and sampling, warm-up and repeats
    assert decoder.calls.count((2, 10)) == 1 + 2
    assert decoder.calls.count((2, 1)) == 3 + 2 * 7


def test_latency_is_measured_at_batch_1_whatever_the_throughput():
    latency = measure_decoder(MeteredDecoder(), prompt_tokens=4, new_tokens=2, batch_sizes=(3,), repeats=1)
    assert list(latency.throughput) == [3]
    assert latency.decode_latency_ms.p50 >= 1000 * STEP_SECONDS


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"new_tokens": 1}, "give 1, 2 and 1 or more"),
        ({"repeats": 0}, "give 1, 2 and 1 or more"),
        ({"prompt_tokens": 60}, r"60 \+ 8 tokens do not fit the model's context of 64"),
    ],
)
def test_what_cannot_be_measured_is_named(wrong, says):
    with pytest.raises(InputError, match=says):
        measure_decoder(MeteredDecoder(), **({"prompt_tokens": 4, "new_tokens": 8} | wrong))
