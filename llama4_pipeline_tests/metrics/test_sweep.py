"""One opened engine, measured by length, context and batch."""

from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.metrics.sweep import Plan, measure_sweep
from llama4_pipeline.runtime.engines import open_decoder


def test_every_length_context_and_batch_has_its_figure(tiny_random_checkpoint):
    memory = MemoryMeter()
    decoder = open_decoder("pytorch", checkpoint=tiny_random_checkpoint, threads=1)
    plan = Plan(prefills=(7, 20), contexts=(3, 40), batches=(1, 3), new_tokens=5)
    sweep = measure_sweep(decoder, plan, memory)
    assert sorted(sweep.prefill_ms) == [3, 7, 20, 40]
    assert sorted(sweep.decode_ms) == [3, 40]
    assert sorted(sweep.throughput) == [1, 3]
    # 40 of context and 5 fed back; layers, key and value, KV heads, head size, float32
    assert sweep.kv_cache_bytes == 45 * 4 * 2 * 2 * 16 * 4
    assert sweep.peak_memory_bytes > sweep.kv_cache_bytes


def test_a_prompt_of_each_length_is_read_before_the_timed_one_where_that_is_asked_for(
    tiny_random_checkpoint, monkeypatch
):
    decoder = open_decoder("pytorch", checkpoint=tiny_random_checkpoint, threads=1)
    read, forward = [], decoder.forward

    def counted(input_ids, *rest, **named):
        read.append(input_ids.shape[1])
        return forward(input_ids, *rest, **named)

    monkeypatch.setattr(decoder, "forward", counted)
    plan = Plan(prefills=(7, 20), contexts=(40,), batches=(), new_tokens=1, warm_up_lengths=True)
    measure_sweep(decoder, plan, MemoryMeter())
    assert [read.count(length) for length in (7, 20, 40)] == [2, 2, 2]
