"""The rules about padding, against what transformers' `generate` prepares."""

import numpy as np
import pytest
import torch
from transformers import Llama4ForCausalLM

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import EMPTY_MASK, extend_mask, position_ids

LIMITS = {"vocab_size": 10, "max_context": 8}


def ids(batch: int, new: int) -> np.ndarray:
    return np.zeros((batch, new), dtype=np.int64)


def test_positions_are_those_of_transformers_generate(tiny_random_checkpoint):
    model = Llama4ForCausalLM.from_pretrained(tiny_random_checkpoint)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 1, 1, 0, 0]])
    expected = model._prepare_position_ids_for_generation(
        torch.from_numpy(ids(4, 5)), {"attention_mask": torch.from_numpy(mask)}
    )
    assert position_ids(mask, 5).tolist() == expected.tolist()
    assert position_ids(mask, 2).tolist() == expected[:, -2:].tolist()


def test_no_mask_means_that_new_tokens_are_real():
    cached = np.array([[0, 1], [1, 1]])
    assert extend_mask(cached, ids(2, 2), None, **LIMITS).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert extend_mask(EMPTY_MASK, ids(2, 1), None, **LIMITS).tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("cached", "input_ids", "mask", "says"),
    [
        (EMPTY_MASK, ids(1, 0), None, "at least one token"),
        (EMPTY_MASK, np.zeros(3, dtype=np.int64), None, "at least one token"),
        (np.ones((2, 3), dtype=np.int64), ids(1, 1), None, "2 rows and the input 1"),
        (EMPTY_MASK, np.array([[10]]), None, "outside"),
        (EMPTY_MASK, np.array([[-1]]), None, "outside"),
        (
            np.ones((1, 8), dtype=np.int64),
            ids(1, 1),
            None,
            "9 tokens do not fit.*exported for 8.*--max-context",
        ),
        (
            np.ones((1, 3), dtype=np.int64),
            ids(1, 1),
            np.ones((1, 1)),
            r"must cover cache and input: \[1, 4\]",
        ),
        (np.ones((1, 1), dtype=np.int64), ids(1, 1), np.array([[0, 1]]), "already cached"),
        (EMPTY_MASK, ids(2, 2), np.array([[1, 1], [0, 0]]), "hides every token"),
        (EMPTY_MASK, ids(1, 2), np.array([[1, 2]]), "attention_mask holds 2; give 1 .* and 0"),
        (EMPTY_MASK, ids(1, 2), np.array([[0.5, 1]]), "attention_mask holds 0.5; give 1 .* and 0"),
        (
            np.ones((1, 1), dtype=np.int64),
            ids(1, 1),
            np.array([[1, -1]]),
            "attention_mask holds -1; give 1 .* and 0",
        ),
    ],
)
def test_bad_calls_name_the_remedy(cached, input_ids, mask, says):
    with pytest.raises(InputError, match=says):
        extend_mask(cached, input_ids, mask, **LIMITS)
