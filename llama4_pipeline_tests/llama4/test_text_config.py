"""A wrong value in a configuration is refused by name; the defaults are those of transformers."""

from typing import Any

import pytest
from transformers import Llama4TextConfig

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.text_config import DEFAULTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "5120"),
        ("hidden_size", 0),
        ("num_hidden_layers", 2.0),
        ("vocab_size", True),
        ("vocab_size", None),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", float("nan")),
        ("attn_scale", -1),
        ("use_qk_norm", "yes"),
        ("num_experts_per_tok", 17),
        ("moe_layers", "all"),
        ("moe_layers", [0.5]),
        ("no_rope_layers", [1, 1]),
        ("no_rope_layers", [2] * 48),
        ("layer_types", ["sliding_attention"] * 48),
        ("layer_types", ["full_attention"] * 49),
        ("attention_chunk_size", 0),
        ("interleave_moe_layer_step", 0),
        ("rope_theta", "1e6"),
        ("rope_theta", -5),
        ("dtype", "float99"),
        ("torch_dtype", ["float32"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^config key {key} is .+, expected .+") as caught:
        Architecture.from_config({key: value})
    assert "\n" not in str(caught.value)


def test_a_dense_model_needs_no_step() -> None:
    architecture = Architecture.from_config({"moe_layers": [], "interleave_moe_layer_step": 0})
    assert not any(layer.is_moe for layer in architecture.layers)


def test_defaults_are_those_of_transformers() -> None:
    derived = {"moe_layers", "no_rope_layers", "layer_types"}
    theirs = Llama4TextConfig().to_dict()
    assert {key: theirs[key] for key in DEFAULTS.keys() - derived} == {
        key: value for key, value in DEFAULTS.items() if key not in derived
    }


def test_a_dense_model_may_have_no_expert_for_a_token() -> None:
    dense = {"moe_layers": [], "num_experts_per_tok": 0, "num_local_experts": 0}
    assert not any(layer.is_moe for layer in Architecture.from_config(dense).layers)
