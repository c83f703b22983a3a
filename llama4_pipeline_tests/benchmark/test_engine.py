"""Whether what is timed computes what it should."""

import numpy as np

from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline_tests.benchmark.engine import step_error


def test_steps_are_held_against_a_prompt(tiny_random_checkpoint, monkeypatch):
    decoder = open_decoder("pytorch", checkpoint=tiny_random_checkpoint, threads=1)
    assert step_error(decoder) < 1e-4

    forward = decoder.forward

    def of_the_token_before(input_ids, *rest, **named):
        stale = np.zeros_like(input_ids) if input_ids.shape[1] == 1 else input_ids
        return forward(stale, *rest, **named)

    monkeypatch.setattr(decoder, "forward", of_the_token_before)
    assert step_error(decoder) > 0.5
