"""Llama 4 in the PyTorch form that exports: one page, the model as the paper tells it.

The blocks that a runtime has a kernel for (attention with its cache, experts, norms) are calls of functions in the
ONNX domain `llama4`; `llama4_pipeline.graph.functions` gives each a body of standard operators. Everything between
them is plain PyTorch. Shapes: B batch, S new tokens, P cached tokens, T = P + S, H hidden size, N query heads, K key
and value heads, D head size, E experts, I expert width, V vocabulary.

The reference is `modeling_llama4.py` of transformers; the docstrings name the class that each module stands for.
"""

from typing import Any, cast

import torch
from torch import nn

from llama4_pipeline.llama4.architecture import Architecture, Layer

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [B, K, P, D]


class ExportableLlama4(nn.Module):
    """`Llama4ForCausalLM` with its cache as plain inputs and outputs.

    Parameters carry the names and layouts of the exported initializers: linear weights `[in, out]`, queries, keys and
    values packed into one product, gate and up into another, experts as ONNX Runtime's MoE operator wants them.

    Args:
        architecture: what each layer is.
        inverse_frequencies: RoPE frequencies, float32 [D / 2].
        rope_scaling: factor on cosine and sine (1.0 for every type but YaRN).
    """

    def __init__(
        self, architecture: Architecture, inverse_frequencies: torch.Tensor, rope_scaling: float = 1.0
    ) -> None:
        super().__init__()
        self.model = _TextModel(architecture, inverse_frequencies, rope_scaling)
        if architecture.tie_word_embeddings:
            self.lm_head = None
        else:
            self.lm_head = _Linear(architecture.hidden_size, architecture.vocab_size)

    def forward(
        self,
        input_ids: torch.Tensor,  # int64 [B, S]
        attention_mask: torch.Tensor,  # int64 [B, T]
        position_ids: torch.Tensor,  # int64 [B, S]
        past_key_values: list[KeyValue],
        logits_to_keep: torch.Tensor,  # int64 [], 0 = every position
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        hidden, present = self.model(input_ids, attention_mask, position_ids, past_key_values)  # [B, S, H]
        hidden = _call("LastPositions", (hidden, logits_to_keep), hidden.dtype, hidden.shape)  # [B, kept, H]
        if self.lm_head is None:
            return hidden @ self.model.embed_tokens.weight.t(), present
        return self.lm_head(hidden), present  # [B, kept, V]


class _TextModel(nn.Module):
    """`Llama4TextModel`: embed, the layers, the last norm; masks and angles are made once for all layers."""

    def __init__(self, arch: Architecture, inverse_frequencies: torch.Tensor, rope_scaling: float) -> None:
        super().__init__()
        self.arch, self.rope_scaling = arch, rope_scaling
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.layers = nn.ModuleList(_DecoderLayer(arch, layer) for layer in arch.layers)
        self.norm = _Norm(arch)
        self.register_buffer("inverse_frequencies", inverse_frequencies)
        self.chunk_size = next((layer.chunk_size for layer in arch.layers if layer.chunk_size), None)

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, past: list[KeyValue]
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        shared = self._shared(input_ids, mask, position_ids)
        layers = cast("list[_DecoderLayer]", list(self.layers))
        norms = [layer.input_layernorm for layer in layers] + [self.norm]
        residual = self.embed_tokens(input_ids)  # [B, S, H]
        hidden = norms[0].first(residual)
        present: list[KeyValue] = []
        for layer, cache, next_norm in zip(layers, past, norms[1:], strict=True):
            delta, residual, grown = layer(hidden, residual, cache, shared)
            present.append(grown)
            hidden, residual = next_norm(delta, residual)
        return hidden, present

    def _shared(
        self, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What all layers look at: additive masks [B, 1, S, T], cosine and sine [B, S, D / 2], temperature [S, 1]."""
        arch, (batch, new), total = self.arch, input_ids.shape, mask.shape[1]
        bias_shape, dtype = (batch, 1, new, total), self.embed_tokens.weight.dtype
        ids_and_mask = (input_ids, mask)
        shared = {}
        if any(layer.chunk_size is None for layer in arch.layers):
            shared["causal"] = _call("CausalBias", ids_and_mask, dtype, bias_shape, to=_onnx_type(dtype))
        if self.chunk_size:
            shared["chunked"] = _call(
                "ChunkedCausalBias",
                ids_and_mask,
                dtype,
                bias_shape,
                chunk_size=self.chunk_size,
                to=_onnx_type(dtype),
            )
        if any(layer.uses_rope for layer in arch.layers):
            angles = (batch, new, arch.head_dim // 2)
            shared["cos"], shared["sin"] = _call_many(
                "RotaryAngles",
                (position_ids, self.inverse_frequencies),
                (torch.float32, torch.float32),
                (angles, angles),
                scaling=self.rope_scaling,
            )
        if any(layer.temperature_tuning for layer in arch.layers):
            shared["temperature"] = _call(
                "AttentionTemperature",
                ids_and_mask,
                torch.float32,
                (new, 1),
                floor_scale=float(arch.floor_scale),
                attn_scale=float(arch.attn_scale),
            )
        return shared


class _DecoderLayer(nn.Module):
    """`Llama4TextDecoderLayer` with each addition moved into the norm that follows it."""

    def __init__(self, arch: Architecture, layer: Layer) -> None:
        super().__init__()
        self.self_attn = _Attention(arch, layer)
        self.feed_forward = (
            _Experts(arch, layer) if layer.experts else _MLP(arch.hidden_size, layer.intermediate_size)
        )
        self.input_layernorm = _Norm(arch)
        self.post_attention_layernorm = _Norm(arch)

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor, past: KeyValue, shared: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, KeyValue]:
        attended, present = self.self_attn(hidden, past, shared)
        hidden, residual = self.post_attention_layernorm(attended, residual)
        return self.feed_forward(hidden), residual, present


class _Attention(nn.Module):
    """`Llama4TextAttention`: RoPE with QK-norm over chunks, or NoPE with a temperature over the whole context."""

    def __init__(self, arch: Architecture, layer: Layer) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, arch.num_attention_heads, arch.num_key_value_heads
        self.epsilon, self.head_dim = arch.rms_norm_eps, arch.head_dim
        width = self.heads * self.head_dim
        self.qkv_proj = _Linear(
            arch.hidden_size, width + 2 * self.kv_heads * self.head_dim, arch.attention_bias
        )
        self.o_proj = _Linear(width, arch.hidden_size, arch.attention_bias)

    def forward(
        self, hidden: torch.Tensor, past: KeyValue, shared: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, KeyValue]:
        qkv = self.qkv_proj(hidden)  # [B, S, (N + 2 K) D]
        bias = shared["chunked" if self.layer.chunk_size else "causal"]
        attributes = {"num_heads": self.heads, "kv_num_heads": self.kv_heads, "scale": self.head_dim**-0.5}
        extra: tuple[torch.Tensor, ...]
        if self.layer.uses_rope:
            operator, extra = "RotaryAttention", (shared["cos"], shared["sin"])
            if self.layer.qk_norm:
                operator, attributes["epsilon"] = "NormalizedRotaryAttention", self.epsilon
        elif self.layer.temperature_tuning:
            operator, extra = "TemperedAttention", (shared["temperature"],)
        else:
            operator, extra = "PlainAttention", ()
        batch, new, total = hidden.shape[0], hidden.shape[1], bias.shape[-1]
        cache_shape = (batch, self.kv_heads, total, self.head_dim)
        attended, key, value = _call_many(
            operator,
            (qkv, *past, bias, *extra),
            (hidden.dtype,) * 3,
            ((batch, new, self.heads * self.head_dim), cache_shape, cache_shape),
            **attributes,
        )
        return self.o_proj(attended), (key, value)


class _Experts(nn.Module):
    """`Llama4TextMoe`: the router's sigmoid scales the *input* of each chosen expert; a shared expert sees all."""

    def __init__(self, arch: Architecture, layer: Layer) -> None:
        super().__init__()
        width, hidden = layer.intermediate_size, arch.hidden_size
        self.experts_per_token = arch.experts_per_token
        self.router = _Linear(hidden, layer.experts)
        self.shared_expert = _MLP(hidden, width)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.empty(layer.experts, 2 * width, hidden))  # [E, 2 I, H]
        self.experts.down_proj = nn.Parameter(torch.empty(layer.experts, hidden, width))  # [E, H, I]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        router_logits = self.router(hidden)  # [B, S, E]
        routed = _call(
            "MixtureOfExperts",
            (hidden, router_logits, self.experts.gate_up_proj, self.experts.down_proj),
            hidden.dtype,
            hidden.shape,
            experts_per_token=self.experts_per_token,
        )
        return self.shared_expert(hidden) + routed  # [B, S, H]


class _MLP(nn.Module):
    """`Llama4TextMLP`: the shared expert, or the whole feed-forward block of a dense layer."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gate_up_proj = _Linear(hidden_size, 2 * width)
        self.down_proj = _Linear(width, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up_proj(hidden)  # [B, S, 2 I]
        return self.down_proj(_call("SwiGLU", (gate_up,), gate_up.dtype, (*gate_up.shape[:-1], self.width)))


class _Norm(nn.Module):
    """`Llama4TextRMSNorm`, taking the residual addition before it along."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.empty(arch.hidden_size)), arch.rms_norm_eps

    def forward(self, delta: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(residual + delta), residual + delta), each [B, S, H]."""
        normed, total = _call_many(
            "SkipRMSNormalization",
            (delta, residual, self.weight),
            (residual.dtype,) * 2,
            (residual.shape,) * 2,
            epsilon=self.epsilon,
        )
        return normed, total

    def first(self, residual: torch.Tensor) -> torch.Tensor:
        """norm(residual): nothing is added before the first layer."""
        return _call(
            "RMSNormalization", (residual, self.weight), residual.dtype, residual.shape, epsilon=self.epsilon
        )


class _Linear(nn.Module):
    """`nn.Linear` with its weight stored [in, out], the layout of ONNX MatMul."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def _call(name: str, inputs: tuple, dtype: torch.dtype, shape: tuple, **attributes: Any) -> torch.Tensor:
    return torch.onnx.ops.symbolic(f"llama4::{name}", inputs, attributes, dtype=dtype, shape=shape, version=1)


def _call_many(
    name: str, inputs: tuple, dtypes: tuple, shapes: tuple, **attributes: Any
) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            f"llama4::{name}", inputs, attributes, dtypes=dtypes, shapes=shapes, version=1
        )
    )


def _onnx_type(dtype: torch.dtype) -> int:
    """TensorProto.DataType of a float dtype."""
    return {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[dtype]
