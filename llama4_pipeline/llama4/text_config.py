"""Reads the text configuration of a checkpoint; every complaint names the key and what was expected.

The meaning of the keys is that of `transformers.Llama4TextConfig`, without importing it.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

from llama4_pipeline.errors import InputError

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

DTYPES = ("float32", "float16", "bfloat16")
_LARGEST = sys.float_info.max
_MOST_LAYERS = 10_000


class TextConfig:
    """The values of a configuration, defaults filled in; each method reads one thing and checks it.

    Every method raises InputError for a value of the wrong type or range.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {**DEFAULTS, **values}

    def positive(self, key: str) -> int:
        """An integer from 1 that tensors can count with."""
        value = self._values[key]
        if not _is_int(value) or not 1 <= value < 1 << 63:
            raise _bad(key, value, "a positive integer of 64 bits")
        return value

    def layers(self) -> int:
        """Number of layers."""
        count = self.positive("num_hidden_layers")
        if count > _MOST_LAYERS:
            raise _bad("num_hidden_layers", count, f"at most {_MOST_LAYERS}")
        return count

    def number(self, key: str) -> float:
        """A finite number that is not negative."""
        value = self._values[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise _bad(key, value, "a number that is not negative")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; some published configurations write 4 for true."""
        value = self._values[key]
        if not isinstance(value, int):
            raise _bad(key, value, "true or false")
        return bool(value)

    def check_activation(self) -> None:
        """Llama 4 has one activation."""
        if self._values["hidden_act"] != "silu":
            raise _bad("hidden_act", self._values["hidden_act"], "'silu', the activation of Llama 4")

    def check_rope_theta(self) -> None:
        """The base of the rotation, at the top or in `rope_parameters`, where it is given."""
        parameters = self._values.get("rope_parameters")
        places = (self._values, parameters if isinstance(parameters, Mapping) else {})
        for value in (place.get("rope_theta") for place in places):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise _bad("rope_theta", value, "a positive number")

    def check_dtype(self) -> None:
        """What the weights are said to be stored as, where it is said; it is the weights that decide."""
        for key in ("dtype", "torch_dtype"):
            if self._values.get(key) not in (None, *DTYPES):
                raise _bad(key, self._values[key], f"one of {', '.join(DTYPES)}")

    def key_value_heads(self) -> int:
        """Number of key and value heads; null means as many as query heads."""
        heads = self.positive("num_attention_heads")
        if self._values["num_key_value_heads"] is None:
            return heads
        kv_heads = self.positive("num_key_value_heads")
        if heads % kv_heads:
            raise _bad("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
        return kv_heads

    def head_dim(self, rotates: bool) -> int:
        """Width of a head, even where a layer rotates pairs; null means hidden_size / num_attention_heads."""
        width = self._values["head_dim"]
        if width is None:
            width = self.positive("hidden_size") // self.positive("num_attention_heads")
        else:
            width = self.positive("head_dim")
        if width < 1 or (rotates and width % 2):
            raise _bad("head_dim", width, "an even number, since rotary embedding turns pairs")
        return width

    def experts_per_token(self, any_moe: bool) -> int:
        """Number of experts that the router chooses for a token."""
        if not any_moe:  # a dense model may say 0
            return 1
        chosen = self.positive("num_experts_per_tok")
        if chosen > self.positive("num_local_experts"):
            raise _bad("num_experts_per_tok", chosen, "at most num_local_experts")
        return chosen

    def chunk_size(self) -> int | None:
        """Tokens in a block of chunked attention."""
        return None if self._values["attention_chunk_size"] is None else self.positive("attention_chunk_size")

    def rope_layers(self) -> list[bool]:
        """For each layer whether it uses rotary embedding: `no_rope_layers` has 1 where it does."""
        count = self.layers()
        given = self._values["no_rope_layers"]
        if not given:  # null and [] both mean the interval
            interval = self.positive("no_rope_layer_interval")
            return [(index + 1) % interval != 0 for index in range(count)]
        expected = f"{count} values, 1 for a RoPE layer and 0 for a NoPE layer"
        return [bool(use) for use in self._one_each("no_rope_layers", count, (0, 1), expected)]

    def chunked_layers(self) -> list[bool]:
        """For each layer whether it is of the chunked type; by default those that use rotary embedding."""
        if self._values["layer_types"] is None:
            return self.rope_layers()
        count = self.layers()
        kinds = ("chunked_attention", "full_attention")
        expected = f"{count} of 'chunked_attention' and 'full_attention'"
        given = self._one_each("layer_types", count, kinds, expected)
        if len(self._values["layer_types"]) > count:
            raise _bad("layer_types", self._values["layer_types"], expected)
        return [kind == kinds[0] for kind in given]

    def moe_layers(self) -> frozenset[int]:
        """Indices of the MoE layers: `moe_layers`, or the last of every interleave_moe_layer_step."""
        count = self.layers()
        given = self._values["moe_layers"]
        if given is None:
            step = self.positive("interleave_moe_layer_step")
            return frozenset(range(step - 1, count, step))
        if not isinstance(given, (list, tuple)) or not all(_is_int(index) for index in given):
            raise _bad("moe_layers", given, "a list of layer numbers ([] for a dense model)")
        return frozenset(index for index in given if 0 <= index < count)

    def _one_each(self, key: str, count: int, allowed: tuple[Any, ...], expected: str) -> list[Any]:
        """An allowed value for each layer; what stands past the last is left out."""
        given = self._values[key]
        if (
            not isinstance(given, (list, tuple))
            or len(given) < count
            or any(item not in allowed for item in given)
        ):
            raise _bad(key, given, expected)
        return list(given[:count])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(key: str, value: object, expected: str) -> InputError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return InputError(f"config key {key} is {shown}, expected {expected}")
