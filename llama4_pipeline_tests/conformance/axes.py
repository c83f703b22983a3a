"""The axes along which Llama 4 models differ and the values drawn on each.

An axis is a name and its values; a value names itself in the summary table and says what it puts into the
configuration. A point takes one value on each axis.
"""

from typing import Any

from hypothesis import strategies as st

MAX_CONTEXT = 96
Point = tuple[tuple[str, str], ...]  # axis and value

_LAYERS = 4
_LISTED_MOE = [1, 2]
_LISTED_ROPE = [0, 1, 1, 0]

AXES: dict[str, dict[str, dict[str, Any]]] = {
    "layers": {
        "4": {"num_hidden_layers": _LAYERS},
        "1": {"num_hidden_layers": 1},
        "2": {"num_hidden_layers": 2},
    },
    "experts": {str(count): {"num_local_experts": count} for count in (4, 1, 2, 16, 128)},
    "experts per token": {str(count): {"num_experts_per_tok": count} for count in (1, 2, 3)},
    "MoE layers": {
        "every": {"interleave_moe_layer_step": 1},
        "every second": {"interleave_moe_layer_step": 2},
        "listed": {"moe_layers": _LISTED_MOE},
        "none": {"moe_layers": []},
    },
    "RoPE layers": {
        "all but every fourth": {"no_rope_layer_interval": 4},
        "all but every second": {"no_rope_layer_interval": 2},
        "listed": {"no_rope_layers": _LISTED_ROPE},
        "all": {"no_rope_layers": [1] * _LAYERS},
        "none": {"no_rope_layers": [0] * _LAYERS},
    },
    "chunked layers": {
        "those with RoPE": {},
        "listed": {"layer_types": ["full_attention", "chunked_attention"] * (_LAYERS // 2)},
    },
    "QK norm": {"on": {"use_qk_norm": True}, "off": {"use_qk_norm": False}},
    "temperature": {
        "steps of 8": {"attn_temperature_tuning": True, "floor_scale": 8, "attn_scale": 0.5},
        "steps of 30": {"attn_temperature_tuning": True, "floor_scale": 30, "attn_scale": 0.1},
        "off": {"attn_temperature_tuning": False, "floor_scale": 8},
    },
    "chunk": {
        "7": {"attention_chunk_size": 7},
        "32": {"attention_chunk_size": 32},
        "equal to the context": {"attention_chunk_size": MAX_CONTEXT},
        "larger than the context": {"attention_chunk_size": 8192},
        "none": {"attention_chunk_size": None},
    },
    "rope scaling": {
        "none": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "llama3": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 16.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            }
        },
        "llama3, smoothed": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "yarn": {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    },
    "embeddings": {"untied": {"tie_word_embeddings": False}, "tied": {"tie_word_embeddings": True}},
    "attention bias": {"off": {"attention_bias": False}, "on": {"attention_bias": True}},
    "query heads per key head": {
        "4": {"num_attention_heads": 4, "num_key_value_heads": 1},
        "1": {"num_attention_heads": 3, "num_key_value_heads": 3},
        "5": {"num_attention_heads": 10, "num_key_value_heads": 2},
        "8": {"num_attention_heads": 16, "num_key_value_heads": 2},
    },
    "head size": {"16": {"head_dim": 16}, "8": {"head_dim": 8}, "24": {"head_dim": 24}},
    "vocabulary": {"64": {"vocab_size": 64}, "131": {"vocab_size": 131}},
    "dimensions": {
        "multiples of 32": {"hidden_size": 64, "intermediate_size": 32, "intermediate_size_mlp": 96},
        "odd": {"hidden_size": 52, "intermediate_size": 20, "intermediate_size_mlp": 44},
    },
    "norm epsilon": {"1e-05": {"rms_norm_eps": 1e-5}, "0.01": {"rms_norm_eps": 1e-2}},
}


def points() -> st.SearchStrategy[Point]:
    """Draws one value on every axis; shrinks towards the first of each."""
    return st.tuples(*(st.tuples(st.just(axis), st.sampled_from(list(AXES[axis]))) for axis in AXES))


def configuration(point: Point) -> dict[str, Any]:
    """Keys of `Llama4TextConfig` of a point; as many experts per token as there are experts, at most."""
    keys: dict[str, Any] = {"max_position_embeddings": MAX_CONTEXT}
    for axis, value in point:
        keys |= AXES[axis][value]
    layers = keys["num_hidden_layers"]
    keys["num_experts_per_tok"] = min(keys["num_experts_per_tok"], keys["num_local_experts"])
    for listed in ("no_rope_layers", "layer_types"):
        if listed in keys:
            keys[listed] = keys[listed][:layers]
    if "moe_layers" in keys:
        keys["moe_layers"] = [layer for layer in keys["moe_layers"] if layer < layers]
    return keys
