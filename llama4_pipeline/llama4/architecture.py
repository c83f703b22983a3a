"""What each layer of a Llama 4 text model is, and what the whole costs: tensors, parameters, bytes, FLOPs.

Nothing here imports torch or transformers. The meaning of every configuration key is that of
`transformers.Llama4TextConfig` and `modeling_llama4.py`; a test compares the two for drawn configurations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama4_pipeline.llama4.text_config import TextConfig

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        index: Its place in the model, from 0.
        uses_rope: Rotary position embedding; False is a NoPE layer.
        qk_norm: Weight-less RMS norm of queries and keys, after the rotation.
        temperature_tuning: Queries are scaled by position; NoPE layers only.
        chunk_size: A token sees the tokens of its own block of this many; None sees all before it.
        experts: Number of routed experts; 0 is a dense layer.
        intermediate_size: Of each expert and of the shared expert, or of the dense MLP.
    """

    index: int
    uses_rope: bool
    qk_norm: bool
    temperature_tuning: bool
    chunk_size: int | None
    experts: int
    intermediate_size: int

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward block is a router, experts and a shared expert."""
        return self.experts > 0


@dataclass(frozen=True)
class Architecture:
    """A Llama 4 text model without its weights."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    experts_per_token: int
    rms_norm_eps: float
    attention_bias: bool
    tie_word_embeddings: bool
    floor_scale: int
    attn_scale: float
    max_position_embeddings: int
    layers: tuple[Layer, ...]

    @classmethod
    def from_config(cls, config: Any) -> "Architecture":
        """Reads a text configuration.

        Args:
            config: A `transformers.Llama4TextConfig`, or a mapping of its keys; absent keys take its
                defaults.

        Raises:
            InputError: A value has the wrong type or range, or describes something Llama 4 is not. The
                message names the key.
        """
        values = TextConfig(config if isinstance(config, Mapping) else config.to_dict())
        layers = _layers(values)
        values.check_rope_theta()
        values.check_dtype()
        return cls(
            vocab_size=values.positive("vocab_size"),
            hidden_size=values.positive("hidden_size"),
            num_attention_heads=values.positive("num_attention_heads"),
            num_key_value_heads=values.key_value_heads(),
            head_dim=values.head_dim(rotates=any(layer.uses_rope for layer in layers)),
            experts_per_token=values.experts_per_token(any(layer.is_moe for layer in layers)),
            rms_norm_eps=values.number("rms_norm_eps"),
            attention_bias=values.flag("attention_bias"),
            tie_word_embeddings=values.flag("tie_word_embeddings"),
            floor_scale=values.positive("floor_scale"),
            attn_scale=values.number("attn_scale"),
            max_position_embeddings=values.positive("max_position_embeddings"),
            layers=layers,
        )

    def checkpoint_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of `Llama4ForCausalLM`'s checkpoint, in the order of the model.

        Linear weights are [out, in]; expert stacks are [experts, in, out]. With tied embeddings there is no
        `lm_head.weight`.
        """
        tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in self.layers:
            prefix = f"model.layers.{layer.index}."
            tensors |= {prefix + name: shape for name, shape in self._layer_tensors(layer).items()}
        tensors["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            tensors[LM_HEAD] = (self.vocab_size, self.hidden_size)
        return tensors

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(layer.is_moe for layer in self.layers)

    def parameters(self) -> int:
        """Number of weights in the checkpoint; a tied embedding counts once."""
        return sum(math.prod(shape) for shape in self.checkpoint_tensors().values())

    def active_parameters(self) -> int:
        """Number of weights that decoding one token reads.

        The chosen experts, not all of them; the whole output projection; the one embedding row is left out.
        """
        total = self.vocab_size * self.hidden_size
        experts = {layer.index: layer.experts for layer in self.layers}
        for name, shape in self.checkpoint_tensors().items():
            if name in (EMBEDDING, LM_HEAD):
                continue
            count = math.prod(shape)
            if ".experts." in name:
                count = count // experts[int(name.split(".")[2])] * self.experts_per_token
            total += count
        return total

    def active_weight_bytes(self, bits_per_weight: float) -> int:
        """Bytes of weights that decoding one token reads at batch 1.

        Args:
            bits_per_weight: Storage of one weight with its share of scales: 32, 16, 8.5, 4.5.
        """
        return math.ceil(self.active_parameters() * bits_per_weight / 8)

    def kv_cache_bytes(self, tokens: int, bytes_per_element: int = 4) -> int:
        """Bytes of a key and value cache that keeps every token on every layer."""
        per_token = 2 * len(self.layers) * self.num_key_value_heads * self.head_dim
        return per_token * tokens * bytes_per_element

    def _layer_tensors(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        tensors: dict[str, tuple[int, ...]] = {}
        for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            tensors[f"self_attn.{name}.weight"] = (width, self.hidden_size)
            if self.attention_bias:
                tensors[f"self_attn.{name}.bias"] = (width,)
        tensors["self_attn.o_proj.weight"] = (self.hidden_size, queries)
        if self.attention_bias:
            tensors["self_attn.o_proj.bias"] = (self.hidden_size,)
        mlp = "feed_forward."
        if layer.is_moe:
            tensors["feed_forward.experts.gate_up_proj"] = (
                layer.experts,
                self.hidden_size,
                2 * layer.intermediate_size,
            )
            tensors["feed_forward.experts.down_proj"] = (
                layer.experts,
                layer.intermediate_size,
                self.hidden_size,
            )
            tensors["feed_forward.router.weight"] = (layer.experts, self.hidden_size)
            mlp = "feed_forward.shared_expert."
        tensors[mlp + "gate_proj.weight"] = (layer.intermediate_size, self.hidden_size)
        tensors[mlp + "up_proj.weight"] = (layer.intermediate_size, self.hidden_size)
        tensors[mlp + "down_proj.weight"] = (self.hidden_size, layer.intermediate_size)
        tensors["input_layernorm.weight"] = (self.hidden_size,)
        tensors["post_attention_layernorm.weight"] = (self.hidden_size,)
        return tensors


def _layers(values: TextConfig) -> tuple[Layer, ...]:
    values.check_activation()
    rope, chunked, moe = values.rope_layers(), values.chunked_layers(), values.moe_layers()
    qk_norm, tuning = values.flag("use_qk_norm"), values.flag("attn_temperature_tuning")
    chunk_size = values.chunk_size()
    return tuple(
        Layer(
            index=index,
            uses_rope=uses_rope,
            qk_norm=qk_norm and uses_rope,
            temperature_tuning=tuning and not uses_rope,
            chunk_size=chunk_size if chunked[index] else None,
            experts=values.positive("num_local_experts") if index in moe else 0,
            intermediate_size=values.positive(
                "intermediate_size" if index in moe else "intermediate_size_mlp"
            ),
        )
        for index, uses_rope in enumerate(rope)
    )
