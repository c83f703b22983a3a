"""What each layer of a Llama 4 text model is, and what the whole costs: tensors, parameters, bytes, FLOPs.

Nothing here imports torch or transformers. The meaning of every configuration key is that of
`transformers.Llama4TextConfig` and `modeling_llama4.py`; a test compares the two for drawn configurations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama4_pipeline.errors import InputError

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

# The defaults of transformers.Llama4TextConfig for the keys that shape the model.
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "layer_types": None,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
}


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
            config: A `transformers.Llama4TextConfig`, or a mapping of its keys; absent keys take its defaults.

        Raises:
            InputError: A value has the wrong type or range, or describes something Llama 4 is not. The message
                names the key.
        """
        values = {**DEFAULTS, **(config if isinstance(config, Mapping) else config.to_dict())}
        return _Reader(values).architecture()

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

    def flops_per_token(self, context: int = 0) -> int:
        """Floating point operations of one token that sees `context` tokens before it.

        Two for every active weight, and two for every element of the score and value products of attention.
        """
        seen = sum(min(context + 1, layer.chunk_size or context + 1) for layer in self.layers)
        return 2 * self.active_parameters() + 4 * self.num_attention_heads * self.head_dim * seen

    def kv_cache_bytes(self, tokens: int, batch: int = 1, bytes_per_element: int = 4) -> int:
        """Bytes of a key and value cache that keeps every token on every layer."""
        per_token = 2 * len(self.layers) * self.num_key_value_heads * self.head_dim
        return per_token * tokens * batch * bytes_per_element

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


class _Reader:
    """Reads a configuration key by key; every complaint names the key and what was expected."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def architecture(self) -> Architecture:
        hidden_size = self._positive("hidden_size")
        heads = self._positive("num_attention_heads")
        kv_heads = self._positive("num_key_value_heads", when_null=heads)
        head_dim = self._positive("head_dim", when_null=hidden_size // heads)
        if heads % kv_heads:
            raise _bad("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
        if self._values["hidden_act"] != "silu":
            raise _bad("hidden_act", self._values["hidden_act"], "'silu', the activation of Llama 4")
        layers = self._layers()
        if head_dim % 2 and any(layer.uses_rope for layer in layers):
            raise _bad("head_dim", head_dim, "an even number, since rotary embedding turns pairs")
        experts_per_token = self._positive("num_experts_per_tok")
        if any(layer.is_moe and layer.experts < experts_per_token for layer in layers):
            raise _bad("num_experts_per_tok", experts_per_token, "at most num_local_experts")
        return Architecture(
            vocab_size=self._positive("vocab_size"),
            hidden_size=hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            experts_per_token=experts_per_token,
            rms_norm_eps=self._number("rms_norm_eps"),
            attention_bias=self._flag("attention_bias"),
            tie_word_embeddings=self._flag("tie_word_embeddings"),
            floor_scale=self._positive("floor_scale"),
            attn_scale=self._number("attn_scale"),
            max_position_embeddings=self._positive("max_position_embeddings"),
            layers=layers,
        )

    def _layers(self) -> tuple[Layer, ...]:
        count = self._positive("num_hidden_layers")
        rope = self._rope(count)
        chunked = self._chunked(rope)
        moe = self._moe(count)
        qk_norm = self._flag("use_qk_norm")
        tuning = self._flag("attn_temperature_tuning")
        chunk_size = None
        if self._values["attention_chunk_size"] is not None:
            chunk_size = self._positive("attention_chunk_size")
        experts = self._positive("num_local_experts") if moe else 0
        return tuple(
            Layer(
                index=index,
                uses_rope=rope[index],
                qk_norm=qk_norm and rope[index],
                temperature_tuning=tuning and not rope[index],
                chunk_size=chunk_size if chunked[index] else None,
                experts=experts if index in moe else 0,
                intermediate_size=self._positive(
                    "intermediate_size" if index in moe else "intermediate_size_mlp"
                ),
            )
            for index in range(count)
        )

    def _rope(self, count: int) -> list[bool]:
        given = self._values["no_rope_layers"]
        if not given:  # None and [] both mean the interval
            interval = self._positive("no_rope_layer_interval")
            return [(index + 1) % interval != 0 for index in range(count)]
        if (
            not isinstance(given, (list, tuple))
            or len(given) < count
            or any(use not in (0, 1) for use in given)
        ):
            raise _bad("no_rope_layers", given, f"{count} values, 1 for a RoPE layer and 0 for a NoPE layer")
        return [bool(use) for use in given]

    def _chunked(self, rope: list[bool]) -> list[bool]:
        given = self._values["layer_types"]
        if given is None:
            return rope
        kinds = ("chunked_attention", "full_attention")
        if (
            not isinstance(given, (list, tuple))
            or len(given) < len(rope)
            or any(kind not in kinds for kind in given)
        ):
            raise _bad("layer_types", given, f"{len(rope)} of 'chunked_attention' and 'full_attention'")
        return [kind == "chunked_attention" for kind in given]

    def _moe(self, count: int) -> frozenset[int]:
        given = self._values["moe_layers"]
        if given is None:
            step = self._positive("interleave_moe_layer_step")
            return frozenset(range(step - 1, count, step))
        if not isinstance(given, (list, tuple)) or any(not _is_int(index) for index in given):
            raise _bad("moe_layers", given, "a list of layer numbers ([] for a dense model)")
        return frozenset(index for index in given if 0 <= index < count)

    def _positive(self, key: str, when_null: int | None = None) -> int:
        value = self._values[key]
        if value is None and when_null is not None:
            return when_null
        if not _is_int(value) or value < 1:
            raise _bad(key, value, "a positive integer")
        return value

    def _number(self, key: str) -> float:
        value = self._values[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            raise _bad(key, value, "a number that is not negative")
        return float(value)

    def _flag(self, key: str) -> bool:
        value = self._values[key]
        if not isinstance(value, (bool, int)):  # some published configurations write 4 for true
            raise _bad(key, value, "true or false")
        return bool(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(key: str, value: object, expected: str) -> InputError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InputError(f"config key {key} is {shown}, expected {expected}")
