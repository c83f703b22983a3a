"""Computes the experts of transformers' Llama 4 only for the tokens that are routed to them, for training.

transformers multiplies every token by every expert, those not chosen with a zero input. Their outputs and
their gradients are zero, so leaving them out gives the same model and gradients at a fraction of the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional as F
from transformers.models.llama4.modeling_llama4 import Llama4ForCausalLM, Llama4TextMoe


@contextmanager
def sparse_experts(model: Llama4ForCausalLM) -> Iterator[list[torch.Tensor]]:
    """Runs the model's MoE layers sparsely inside the `with` block.

    Yields:
        A list that each MoE layer appends its router logits [tokens, experts] to; clear it after use.
    """
    layers = [module for module in model.modules() if isinstance(module, Llama4TextMoe)]
    router_logits: list[torch.Tensor] = []
    for layer in layers:
        layer.forward = partial(_forward, layer, router_logits)
    try:
        yield router_logits
    finally:
        for layer in layers:
            del layer.forward


def balance_loss(router_logits: list[torch.Tensor], experts_per_token: int) -> torch.Tensor:
    """How unevenly the experts are used, 1 when evenly: the Switch Transformer's auxiliary loss (2101.03961).

    0 for a model without experts.

    Args:
        router_logits: Of each MoE layer, [tokens, experts].
        experts_per_token: Experts that the router picks for a token.
    """
    if not router_logits:
        return torch.zeros(())
    losses = []
    for logits in router_logits:
        experts = logits.shape[-1]
        chosen = logits.topk(experts_per_token, dim=-1).indices.flatten()
        share = torch.bincount(chosen, minlength=experts) / chosen.numel()
        losses.append(experts * (share * logits.float().softmax(-1).mean(0)).sum())
    return torch.stack(losses).mean()


def _forward(
    layer: Llama4TextMoe, router_logits: list[torch.Tensor], hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_states = hidden_states.reshape(-1, layer.hidden_dim)  # [tokens, hidden]
    _, logits = layer.router(hidden_states)
    router_logits.append(logits)
    top_logits, top_experts = logits.topk(layer.top_k, dim=-1)  # [tokens, top_k]
    output = layer.shared_expert(hidden_states)
    for choice in range(layer.top_k):
        scores = top_logits[:, choice, None].float().sigmoid().to(hidden_states.dtype)
        output = output + _routed(layer, hidden_states * scores, top_experts[:, choice])
    return output, logits


def _routed(layer: Llama4TextMoe, hidden_states: torch.Tensor, expert_of_token: torch.Tensor) -> torch.Tensor:
    """Each token [hidden] through its one expert, tokens sorted by expert on the way."""
    order = expert_of_token.argsort(stable=True)
    counts = expert_of_token.bincount(minlength=layer.num_experts).tolist()
    weights = zip(layer.experts.gate_up_proj.unbind(), layer.experts.down_proj.unbind(), strict=True)
    outputs = []
    for tokens, (gate_up_proj, down_proj) in zip(hidden_states[order].split(counts), weights, strict=True):
        gate, up = (tokens @ gate_up_proj).chunk(2, dim=-1)
        outputs.append((up * F.silu(gate)) @ down_proj)
    return torch.cat(outputs)[order.argsort()]
