"""Sparse experts are the model of transformers: same logits, same gradients, and gone after the block."""

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

from llama4_pipeline.llama4.sparse_experts import balance_loss, sparse_experts


def _model(experts_per_token: int) -> Llama4ForCausalLM:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=64,
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
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Llama4ForCausalLM(config)


@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_logits_and_gradients_are_those_of_transformers(experts_per_token: int):
    model = _model(experts_per_token)
    tokens = torch.randint(3, 64, (2, 17))
    dense = model(tokens, labels=tokens)
    dense.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with sparse_experts(model) as router_logits:
        sparse = model(tokens, labels=tokens)
        assert [logits.shape for logits in router_logits] == [(34, 4), (34, 4)]
    sparse.loss.backward()
    torch.testing.assert_close(sparse.logits, dense.logits)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_the_model_is_as_before_after_the_block():
    model = _model(1)
    tokens = torch.randint(3, 64, (1, 5))
    with sparse_experts(model) as router_logits:
        model(tokens)
    model(tokens)
    assert len(router_logits) == 2
    assert "forward" not in vars(model.model.layers[0].feed_forward)


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all():
    even = torch.eye(4).repeat(8, 1) * 30
    one = torch.tensor([[30.0, 0, 0, 0]]).repeat(32, 1)
    assert balance_loss([even], 1).item() == pytest.approx(1, abs=1e-4)
    assert balance_loss([one], 1).item() == pytest.approx(4, abs=1e-4)


def test_a_model_without_experts_has_nothing_to_balance():
    assert balance_loss([], 1).item() == 0
