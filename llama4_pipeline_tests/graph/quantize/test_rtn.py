"""Round to nearest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize, to_blocks


@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    size=st.sampled_from([1e-4, 1.0, 1e3]),
)
def test_error_is_at_most_half_a_step_and_one_at_the_ends(
    seed: int, bits: int, symmetric: bool, size: float
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((4, 64)) * size).astype(np.float32)
    scheme = Scheme(bits, 32, symmetric)
    quantised = RoundToNearest().quantize(weight, scheme)
    error = np.abs(dequantize(quantised, scheme, 64) - weight).reshape(4, 2, 32)
    step = np.abs(quantised.scales)[..., None]
    codes = quantised.codes.reshape(error.shape)
    # the end of the range moves: by the rounding of a zero point, or because codes reach one step less on one side
    at_an_end = (codes == 0) | (codes == scheme.top)
    assert (error <= np.where(at_an_end, 1.001, 0.501) * step).all()


def test_a_symmetric_scale_holds_the_extreme_of_a_block_exactly() -> None:
    """Whichever side it is on: the scale has its sign."""
    weight, scheme = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32), Scheme(4, 32, True)
    restored = to_blocks(dequantize(RoundToNearest().quantize(weight, scheme), scheme, 64), 32)
    blocks = to_blocks(weight, 32)
    extreme = np.abs(blocks).argmax(-1)[..., None]
    got, expected = (np.take_along_axis(each, extreme, -1) for each in (restored, blocks))
    assert (expected > 0).any() and (expected < 0).any()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_zero_point_is_the_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    quantised = RoundToNearest().quantize(weight, Scheme(4, 32, False))
    low = to_blocks(weight, 32).min(-1)
    assert (np.abs(quantised.zero_points * quantised.scales + low) <= 0.501 * quantised.scales).all()


def test_what_lies_behind_the_inputs_holds_the_zero_point() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    quantised = RoundToNearest().quantize(weight, Scheme(4, 32, False))
    assert (quantised.codes[:, 1, 8:] == quantised.zero_points[:, 1:]).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    scheme = Scheme(4, 16, symmetric)
    weight = np.zeros((2, 32), np.float32)
    np.testing.assert_array_equal(dequantize(RoundToNearest().quantize(weight, scheme), scheme, 32), weight)


def test_codes_are_chosen_for_the_stored_scale() -> None:
    """With float16 scales the error is that of the nearest code, not of a scale rounded behind its back."""
    weight = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    scheme = Scheme(8, 128, True, "float16")
    quantised = RoundToNearest().quantize(weight, scheme)
    step = quantised.scales.astype(np.float32)
    inside = np.abs(weight) <= 127 * np.abs(step)
    assert (np.abs(dequantize(quantised, scheme, 128) - weight) <= 0.501 * np.abs(step))[inside].all()
