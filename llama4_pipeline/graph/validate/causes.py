"""Which known mistake explains a block that is off.

The block is computed anew from the reference's input, once for each mistake that ports of Llama 4 made; the
cause is the one that comes out as the graph has it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from transformers import Llama4ForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention, Llama4TextMLP, Llama4TextMoe

from llama4_pipeline.graph.validate.localise import Place
from llama4_pipeline.graph.validate.probes import StepValues
from llama4_pipeline.graph.validate.uses import Step

_SAME = 1e-3  # of the standard deviation: a mistake explains the graph if it comes out this close
_CLOSER = 0.05  # and this much closer than the right computation


@torch.no_grad()
def explain(
    place: Place,
    model: Llama4ForCausalLM,
    chunk_size: int | None,
    step: Step,
    reference: StepValues,
    graph: StepValues,
) -> Place:
    """Adds the cause, if the block is one whose mistakes are known and the step has no past.

    Args:
        place: The first block that is off.
        model: The reference.
        chunk_size: Of the layer's attention.
        step: What both were fed.
        reference: What the model computed.
        graph: What the graph computed.
    """
    if place.layer < 0 or step.past:
        return place
    layer = model.model.layers[place.layer]
    prefix = f"layers.{place.layer}."
    if place.block == "attention":
        given = torch.from_numpy(reference.values[prefix + "attention_norm"])
        mistakes = _attention_mistakes(layer.self_attn, model, given, step, chunk_size)
    elif place.block in ("experts", "feed_forward", "shared_expert"):
        given = torch.from_numpy(reference.values[prefix + "feed_forward_norm"])
        mistakes = _feed_forward_mistakes(layer.feed_forward, place.block, given)
    else:
        return place
    name = prefix + place.block
    expected, got = reference.values[name][step.real], graph.values[name][step.real]
    off = np.abs(expected - got).max()
    for cause, compute in mistakes.items():
        value = compute().numpy()[step.real]
        distance = np.abs(value - got).max()
        if distance < _SAME * expected.std() and distance < _CLOSER * off:
            return replace(place, cause=cause)
    return place


@dataclass(frozen=True)
class _AttentionForm:
    """One way to compute attention; the defaults are what Llama 4 does."""

    rotation: Literal["pairs", "halves", "none"]
    window: Literal["chunk", "sliding", "shifted chunk", "none"]
    norm: bool
    temperature: bool
    scale: float
    grouping: Literal["neighbors", "strided"] = "neighbors"


def _attention_mistakes(
    attention: Llama4TextAttention,
    model: Llama4ForCausalLM,
    given: torch.Tensor,
    step: Step,
    chunk: int | None,
) -> dict[str, Callable[[], torch.Tensor]]:
    right, wrong = _attention_forms(attention, chunk)
    size = chunk or model.config.attention_chunk_size
    return {
        cause: partial(_attend, attention, model, given, step, size, form)
        for cause, form in wrong.items()
        if form != right
    }


def _attention_forms(
    attention: Llama4TextAttention, chunk: int | None
) -> tuple[_AttentionForm, dict[str, _AttentionForm]]:
    """What the layer computes, and by cause what a mistake makes of it."""
    rotates = bool(attention.use_rope)
    right = _AttentionForm(
        rotation="pairs" if rotates else "none",
        window="chunk" if chunk else "none",
        norm=hasattr(attention, "qk_norm"),
        temperature=bool(attention.attn_temperature_tuning) and not rotates,
        scale=attention.scaling,
    )
    return right, {
        "RoPE rotates halves and not neighboring pairs": replace(right, rotation="halves"),
        "RoPE is missing": replace(right, rotation="none"),
        "RoPE is applied on a NoPE layer": replace(right, rotation="pairs"),
        "attention slides where it should be chunked": replace(right, window="sliding"),
        "chunks do not start at the first real token": replace(right, window="shifted chunk"),
        "the chunk mask is missing": replace(right, window="none"),
        "the chunk mask is applied on a layer without chunks": replace(right, window="chunk"),
        "the attention scale is missing": replace(right, scale=1.0),
        "the QK norm is missing": replace(right, norm=False),
        "the QK norm is applied where there is none": replace(right, norm=True),
        "temperature tuning is applied on a RoPE layer": replace(right, temperature=True),
        "temperature tuning is missing": replace(right, temperature=False),
        "query heads are grouped with the wrong key heads": replace(right, grouping="strided"),
    }


def _attend(
    attention: Llama4TextAttention,
    model: Llama4ForCausalLM,
    given: torch.Tensor,
    step: Step,
    chunk: int | None,
    form: _AttentionForm,
) -> torch.Tensor:
    """Attention of a step without past: float32 [batch, sequence, hidden] from the same."""
    batch, sequence, _ = given.shape
    heads = (batch, sequence, -1, attention.head_dim)
    query, key, value = (
        projection(given).view(heads) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    angles = torch.from_numpy(step.position_ids)[..., None].float() * model.model.rotary_emb.inv_freq
    rotate = partial(_rotate, angles=angles, factor=model.model.rotary_emb.attention_scaling)
    query, key = (rotate(states, rotation=form.rotation) for states in (query, key))
    if form.norm:
        query, key = (_unit_rms(states, model.config.rms_norm_eps) for states in (query, key))
    if form.temperature:
        place = torch.arange(sequence).float()
        tuned = torch.log1p(torch.floor((place + 1) / attention.floor_scale)) * attention.attn_scale + 1
        query = query * tuned[None, :, None, None]
    groups = attention.num_key_value_groups
    if form.grouping == "neighbors":
        key, value = (states.repeat_interleave(groups, dim=2) for states in (key, value))
    else:
        key, value = (states.repeat(1, 1, groups, 1) for states in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * form.scale
    hidden = ~torch.from_numpy(_visible(step, chunk, form.window))[:, None]
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    attended = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)
    return attention.o_proj(attended.reshape(batch, sequence, -1))


def _rotate(states: torch.Tensor, angles: torch.Tensor, factor: float, rotation: str) -> torch.Tensor:
    if rotation == "none":
        return states
    cos, sin = (factor * turned[:, :, None] for turned in (angles.cos(), angles.sin()))
    if rotation == "pairs":
        a, b = states[..., 0::2], states[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    a, b = states.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _unit_rms(states: torch.Tensor, epsilon: float) -> torch.Tensor:
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)


def _visible(step: Step, chunk: int | None, window: str) -> np.ndarray:
    """bool [batch, sequence, sequence]: which keys a query sees."""
    columns = np.arange(step.sequence)
    query, key = columns[None, :, None], columns[None, None, :]
    visible = (key <= query) & (step.attention_mask != 0)[:, None, :]
    if chunk is None or window == "none":
        return visible
    pads = np.argmax(step.real, axis=1)[:, None, None]
    if window == "chunk":
        return visible & ((query - pads) // chunk == (key - pads) // chunk)
    if window == "shifted chunk":
        return visible & (query // chunk == key // chunk)
    return visible & (query - key < chunk)


def _feed_forward_mistakes(
    block: Llama4TextMoe | Llama4TextMLP, name: str, given: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    if isinstance(block, Llama4TextMoe) and name == "experts":
        return {
            "the router weight scales the output of the expert and not its input": partial(
                _experts, block, given, scaled="output"
            ),
            "gate and up are swapped": partial(_experts, block, given, swapped=True),
            "the router weight is missing": partial(_experts, block, given, scaled="nothing"),
            "the router weight is a softmax and not a sigmoid": partial(
                _experts, block, given, weight="softmax"
            ),
        }
    mlp = block.shared_expert if isinstance(block, Llama4TextMoe) else block
    return {"gate and up are swapped": partial(_mlp_with_swapped_gate, mlp, given)}


def _mlp_with_swapped_gate(mlp: Llama4TextMLP, given: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(torch.nn.functional.silu(mlp.up_proj(given)) * mlp.gate_proj(given))


def _experts(
    block: Llama4TextMoe,
    given: torch.Tensor,
    scaled: Literal["input", "output", "nothing"] = "input",
    swapped: bool = False,
    weight: Literal["sigmoid", "softmax"] = "sigmoid",
) -> torch.Tensor:
    """Sum of the chosen experts: float32 [batch, sequence, hidden] from the same."""
    tokens = given.reshape(-1, given.shape[-1])
    logits = torch.nn.functional.linear(tokens, block.router.weight)
    top, chosen = logits.topk(block.top_k, dim=-1)
    weights = top.sigmoid() if weight == "sigmoid" else logits.softmax(dim=-1).gather(1, chosen)
    out = torch.zeros_like(tokens)
    for expert in range(block.num_experts):
        row, choice = (chosen == expert).nonzero(as_tuple=True)
        if not len(row):
            continue
        factor = weights[row, choice, None]
        x = tokens[row] * factor if scaled == "input" else tokens[row]
        gate, up = (x @ block.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        if swapped:
            gate, up = up, gate
        y = (torch.nn.functional.silu(gate) * up) @ block.experts.down_proj[expert]
        out.index_add_(0, row, y * factor if scaled == "output" else y)
    return out.view(given.shape)
