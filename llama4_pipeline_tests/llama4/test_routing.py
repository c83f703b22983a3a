"""Tokens by expert, counted on batches of texts, are those that transformers' own routers choose text by text."""

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

from llama4_pipeline.data.tokenizer import train_tokenizer
from llama4_pipeline.llama4.routing import ExpertReach


@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_counts_are_those_of_transformers(experts_per_token: int) -> None:
    torch.manual_seed(0)
    texts = ["a short one", "a text that is longer than the others by some words, and then some", "two words"]
    tokenizer = train_tokenizer(texts, 300, 512)
    config = Llama4TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=experts_per_token,
        moe_layers=[0, 2],
        attention_chunk_size=8,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Llama4ForCausalLM(config).eval()
    reach = ExpertReach(model, tokenizer)
    assert reach.experts == [(layer, expert) for layer in (0, 2) for expert in range(4)]
    counts = reach.count(texts)
    chosen = []
    for layer in (0, 2):
        router = model.model.layers[layer].feed_forward.router
        router.register_forward_hook(lambda _, __, output: chosen.append(output[1]))
    for text, row in zip(texts, counts, strict=True):
        chosen.clear()
        model(**tokenizer(text, return_tensors="pt"))
        expected = [
            logits.topk(experts_per_token).indices.flatten().bincount(minlength=4) for logits in chosen
        ]
        assert row.tolist() == torch.cat(expected).tolist()
