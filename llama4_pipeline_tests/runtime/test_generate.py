"""The decode loop: equal to transformers' `generate`, ragged batches, stop tokens, turns."""

import numpy as np
import pytest
import torch
from transformers import Llama4ForCausalLM

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.generate import FINISHED, generate, pad_left
from llama4_pipeline.runtime.sampling import Sampling

PROMPTS = [[5, 17, 99, 3, 64, 21, 8, 8, 120, 44], [7], [90, 91, 92, 93]]


def rows(steps) -> list[list[int]]:
    return np.stack(list(steps), axis=1).tolist()


def test_64_greedy_tokens_are_those_of_transformers(decoder, tiny_random_checkpoint):
    model = Llama4ForCausalLM.from_pretrained(tiny_random_checkpoint, attn_implementation="eager").eval()
    ids, mask = pad_left(PROMPTS)
    expected = model.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
    )[:, ids.shape[1] :]
    assert rows(generate(decoder, ids, mask, max_new_tokens=64)) == expected.tolist()


def test_a_row_stops_by_itself(decoder):
    ids, mask = pad_left(PROMPTS)
    free = rows(generate(decoder, ids, mask, max_new_tokens=12))
    stops = [free[0][2], free[2][6]]
    decoder.reset()
    stopped = rows(generate(decoder, ids, mask, max_new_tokens=12, stop_tokens=stops))
    for before, after in zip(free, stopped, strict=True):
        end = next((step for step, token in enumerate(before) if token in stops), len(before) - 1) + 1
        assert after[:end] == before[:end]
        assert set(after[end:]) <= {FINISHED}


def test_ends_when_all_rows_have(decoder):
    ids, mask = pad_left(PROMPTS)
    first = rows(generate(decoder, ids, mask, max_new_tokens=1))
    decoder.reset()
    steps = list(generate(decoder, ids, mask, max_new_tokens=50, stop_tokens=[row[0] for row in first]))
    assert len(steps) == 1


def test_a_second_turn_sees_the_first(decoder):
    ids, _ = pad_left(PROMPTS[:1])
    answer = rows(generate(decoder, ids, max_new_tokens=6))[0]
    question = [answer[-1], 11, 12, 13]
    second = rows(generate(decoder, np.array([question]), max_new_tokens=6))[0]
    decoder.reset()
    whole = np.array([PROMPTS[0] + answer[:-1] + question])
    assert second == rows(generate(decoder, whole, max_new_tokens=6))[0]


def test_rows_that_stopped_go_on_in_the_second_turn(graph_decoder, reference):
    ids, mask = pad_left(PROMPTS)
    stop = rows(generate(reference, ids, mask, max_new_tokens=4))[0][2]
    reference.reset()
    question, question_mask = pad_left([[stop, 11, 12], [13, 14], [15]])

    def two_turns(decoder: Decoder) -> list[list[int]]:
        first = rows(generate(decoder, ids, mask, max_new_tokens=8, stop_tokens=[stop]))
        return first + rows(generate(decoder, question, question_mask, max_new_tokens=8))

    expected = two_turns(reference)
    assert FINISHED in expected[0]
    assert two_turns(graph_decoder) == expected


def test_sampling_is_repeatable(decoder):
    ids, mask = pad_left(PROMPTS)
    sampling = Sampling(temperature=1.0, top_k=20, top_p=0.9)

    def run(seed: int) -> list[list[int]]:
        decoder.reset()
        return rows(generate(decoder, ids, mask, max_new_tokens=6, sampling=sampling, seed=seed))

    assert run(1) == run(1) != run(2)


def test_bad_prompts_are_named(decoder):
    with pytest.raises(InputError, match="empty"):
        pad_left([[1], []])
    with pytest.raises(InputError, match="pad rows on the left"):
        next(generate(decoder, np.array([[1, 2]]), np.array([[1, 0]]), max_new_tokens=1))
    with pytest.raises(InputError, match="shape"):
        next(generate(decoder, np.array([[1, 2]]), np.array([[1]]), max_new_tokens=1))
    decoder.forward(np.array([[1, 2], [3, 4]]))
    with pytest.raises(InputError, match=r"holds 2 rows and the input 1; call reset\(\)"):
        next(generate(decoder, np.array([[1, 2]]), np.array([[0, 1]]), max_new_tokens=1))
    decoder.reset()
    empty = np.zeros((1, 0), dtype=np.int64)
    for mask in (None, empty):
        with pytest.raises(InputError, match=r"input_ids has shape \[1, 0\]; give .* at least one token"):
            next(generate(decoder, empty, mask, max_new_tokens=1))
