"""The architecture against the classes of transformers, for drawn configurations, and known sizes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Llama4ForCausalLM, Llama4TextConfig

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG

MAVERICK = {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.integers(1, 5))
    kv_heads = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 6))
    config = {
        "vocab_size": draw(st.integers(3, 40)),
        "hidden_size": draw(st.integers(2, 24)),
        "intermediate_size": draw(st.integers(1, 20)),
        "intermediate_size_mlp": draw(st.integers(1, 20)),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 6)),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "use_qk_norm": draw(st.booleans()),
        "attn_temperature_tuning": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "attention_chunk_size": draw(st.none() | st.integers(1, 50)),
        "interleave_moe_layer_step": draw(st.integers(1, 3)),
        "no_rope_layer_interval": draw(st.integers(1, 4)),
    }
    if draw(st.booleans()):
        config["moe_layers"] = draw(st.lists(st.integers(0, layers - 1), unique=True))
    if draw(st.booleans()):
        config["no_rope_layers"] = draw(st.lists(st.integers(0, 1), min_size=layers, max_size=layers))
    if draw(st.booleans()):
        kinds = st.sampled_from(["chunked_attention", "full_attention"])
        config["layer_types"] = draw(st.lists(kinds, min_size=layers, max_size=layers))
    return config


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_equals_the_class_of_transformers(values: dict[str, Any]) -> None:
    config = Llama4TextConfig(**values)
    architecture = Architecture.from_config(values)
    assert architecture == Architecture.from_config(config)
    with torch.device("meta"):
        model = Llama4ForCausalLM(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if architecture.tie_word_embeddings:
        del state["lm_head.weight"]
    assert architecture.checkpoint_tensors() == state
    assert architecture.parameters() == sum(parameter.numel() for parameter in model.parameters())
    for layer, module in zip(architecture.layers, model.model.layers, strict=True):
        attention = module.self_attn
        assert layer.uses_rope == bool(attention.use_rope)
        assert layer.qk_norm == hasattr(attention, "qk_norm")
        assert layer.temperature_tuning == (attention.attn_temperature_tuning and not attention.use_rope)
        assert layer.is_moe == module.is_moe_layer
        chunked = config.layer_types[layer.index] == "chunked_attention"
        assert layer.chunk_size == (config.attention_chunk_size if chunked else None)


@pytest.mark.parametrize(
    ("config", "billions", "active_billions"),
    [({}, 107.8, 16.1), (MAVERICK, 400.7, 16.2)],
    ids=["scout", "maverick"],
)
def test_sizes_of_the_published_models(config: dict, billions: float, active_billions: float) -> None:
    architecture = Architecture.from_config(config)
    assert round(architecture.parameters() / 1e9, 1) == billions
    assert round(architecture.active_parameters() / 1e9, 1) == active_billions
    assert architecture.kv_cache_bytes(1, bytes_per_element=2) == 192 * 1024
    assert architecture.active_weight_bytes(4.5) == architecture.active_parameters() * 4.5 / 8


def test_active_parameters_count_the_chosen_experts_and_a_tied_head() -> None:
    one = Architecture.from_config(PECULIAR_CONFIG)
    two = Architecture.from_config(PECULIAR_CONFIG | {"num_experts_per_tok": 2})
    expert = 3 * 48 * 32
    assert two.active_parameters() - one.active_parameters() == 3 * expert  # three MoE layers
    tied = Architecture.from_config(PECULIAR_CONFIG | {"tie_word_embeddings": True})
    assert tied.active_parameters() == one.active_parameters()
    assert one.parameters() - one.active_parameters() == 131 * 48 + 3 * 3 * expert


def test_published_flags_written_as_numbers_are_read() -> None:
    layers = Architecture.from_config(PECULIAR_CONFIG | {"attn_temperature_tuning": 4}).layers
    assert [layer.temperature_tuning for layer in layers] == [False, False, False, True]


@pytest.mark.parametrize(
    "key", ["attention_chunk_size", "floor_scale", "head_dim", "rms_norm_eps", "attn_scale"]
)
def test_a_number_that_no_tensor_can_count_with_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"config key {key} is 1000"):
        Architecture.from_config({key: 10**400})
