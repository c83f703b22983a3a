"""Synthetic weights: any piece equals that part of the whole, and a model made of them stays sane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.synthetic import SyntheticSource

WIDE = Architecture.from_config(
    {
        "vocab_size": 3001,
        "hidden_size": 384,
        "intermediate_size": 256,
        "intermediate_size_mlp": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 4,
        "attention_bias": True,
    }
)
SOURCE = SyntheticSource(WIDE, 3, "bfloat16")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_piece_equals_that_part_of_the_whole(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(SOURCE.names()))
    rows = data.draw(st.slices(SOURCE.shape(name)[0]).filter(lambda piece: piece.step in (None, 1)))
    whole = SOURCE.read(name)
    assert whole.shape == SOURCE.shape(name) == WIDE.checkpoint_tensors()[name]
    assert whole.dtype == SOURCE.dtype(name)
    np.testing.assert_array_equal(SOURCE.read(name, rows), whole[rows])


def test_weights_depend_on_seed_name_and_expert_and_on_nothing_else() -> None:
    name = "model.layers.0.feed_forward.experts.gate_up_proj"
    weights = SyntheticSource(WIDE, 3, "bfloat16").read(name)
    np.testing.assert_array_equal(weights, SOURCE.read(name))
    assert np.mean(weights == SyntheticSource(WIDE, 4, "bfloat16").read(name)) < 0.05
    assert np.mean(weights == SOURCE.read(name.replace("layers.0", "layers.1"))) < 0.05
    assert np.mean(weights[0] == weights[1]) < 0.05


def test_the_dtype_rounds_the_same_numbers() -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    exact = SyntheticSource(WIDE, 3, "float32").read(name)
    np.testing.assert_array_equal(SOURCE.read(name), exact.astype(SOURCE.dtype(name)))


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("model.embed_tokens.weight", 1.0),
        ("lm_head.weight", 384**-0.5),
        (
            "model.layers.1.self_attn.o_proj.weight",
            (2 * 2 * 256) ** -0.5,
        ),  # two branches in each of two layers
    ],
)
def test_scale_and_correlation(name: str, deviation: float) -> None:
    weights = SOURCE.read(name).astype(np.float32)
    assert weights.std() == pytest.approx(deviation, rel=0.01)
    correlation = np.corrcoef(weights[:300]) - np.eye(300)
    assert np.abs(correlation).max() < 6 / np.sqrt(weights.shape[1])


def test_norms_are_one() -> None:
    assert (SOURCE.read("model.norm.weight") == 1).all()
