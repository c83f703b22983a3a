"""Tokens by expert, counted on batches of texts, are those that transformers' own routers choose text by text."""

from pathlib import Path

import pytest
import torch

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.llama4.routing import ExpertReach
from llama4_pipeline_tests.checkpoints import write_random_checkpoint, write_word_tokenizer

_TEXTS = ["the one", "that is more than the others by this and that, and as it is not all of it", "for it"]
_MOE_LAYERS = (0, 2, 3)


@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_counts_are_those_of_transformers(experts_per_token: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(
        write_random_checkpoint(tmp_path / "model", num_experts_per_tok=experts_per_token)
    )
    model, tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
    reach = ExpertReach(model, tokenizer)
    assert reach.experts == [(layer, expert) for layer in _MOE_LAYERS for expert in range(4)]
    *counts, nothing = reach.count([*_TEXTS, ""])
    assert not nothing.any()
    chosen: list[torch.Tensor] = []
    for layer in _MOE_LAYERS:
        router = model.model.layers[layer].feed_forward.router
        router.register_forward_hook(lambda _, __, output: chosen.append(output[1]))
    for text, row in zip(_TEXTS, counts, strict=True):
        chosen.clear()
        model(torch.tensor([tokenizer(text)["input_ids"]]))
        expected = [
            logits.topk(experts_per_token).indices.flatten().bincount(minlength=4) for logits in chosen
        ]
        assert row.tolist() == torch.cat(expected).tolist()


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path / "model")
    write_word_tokenizer(directory, 300)
    checkpoint = Checkpoint.open(directory)
    reach = ExpertReach(checkpoint.load_model(), checkpoint.load_tokenizer())
    with pytest.raises(InputError, match="model: its tokenizer gives token id 250, outside the model's"):
        reach.count(["the one", "w250 and"])
