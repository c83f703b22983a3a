"""Layout and arithmetic of a scheme."""

import numpy as np
import pytest

from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize, pack


def test_pack_puts_the_first_code_in_the_low_half() -> None:
    codes = np.array([[1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(pack(codes, 4), [[0x21, 0x03]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_packed_codes_are_all_there_in_order(bits: int, count: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    found = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(3, -1)
    np.testing.assert_array_equal(found[:, :count], codes)


@pytest.mark.parametrize(
    "scheme", [Scheme(4, 32, False), Scheme(8, 64, True), Scheme(4, 16, False, "float16")]
)
@pytest.mark.parametrize("inputs", [128, 72])
def test_nbytes_counts_what_is_stored(scheme: Scheme, inputs: int) -> None:
    quantised = RoundToNearest().quantize(np.ones((5, inputs), np.float32), scheme)
    stored = pack(quantised.codes, scheme.bits).nbytes + quantised.scales.nbytes
    if quantised.zero_points is not None:
        stored += pack(quantised.zero_points, scheme.bits).nbytes
    assert scheme.nbytes(5, inputs) == stored


def test_fit_takes_the_largest_block_that_divides() -> None:
    scheme = Scheme(4, 128, True)
    fitted = scheme.fit(5120, 96)
    assert fitted is not None
    assert fitted.block_size == 32
    assert scheme.fit(40, 128) is None


def test_dequantize_drops_the_filling_of_a_partial_block() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    scheme = Scheme(8, 32, False)
    restored = dequantize(RoundToNearest().quantize(weight, scheme), scheme, 40)
    np.testing.assert_allclose(restored, weight, atol=0.02)
