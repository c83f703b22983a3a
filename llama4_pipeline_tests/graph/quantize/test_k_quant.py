"""Search of scale and zero point."""

import numpy as np
import pytest

from llama4_pipeline.graph.quantize.k_quant import KQuant
from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize
from llama4_pipeline.graph.quantize.statistics import Statistics


def _block_errors(method: RoundToNearest | KQuant, weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    difference = dequantize(method.quantize(weight, scheme), scheme, weight.shape[1]) - weight
    return np.square(difference).reshape(len(weight), -1, scheme.block_size).sum(axis=-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_block_is_worse_than_round_to_nearest(bits: int, symmetric: bool) -> None:
    weight = np.random.default_rng(0).standard_t(4, (64, 256)).astype(np.float32)
    scheme = Scheme(bits, 32, symmetric)
    searched, plain = (_block_errors(method, weight, scheme) for method in (KQuant(), RoundToNearest()))
    assert (searched <= plain * (1 + 1e-4)).all()
    assert searched.sum() < (0.95 if bits == 4 else 1.0) * plain.sum()


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 8 == 0, 100.0, 1.0).astype(np.float32)
    scheme = Scheme(4, 32, False)
    plain = dequantize(KQuant().quantize(weight, scheme), scheme, 64) - weight
    weighted = (
        dequantize(KQuant().quantize(weight, scheme, Statistics(np.diag(importance), 99)), scheme, 64)
        - weight
    )
    assert (weighted**2 @ importance).sum() < 0.9 * (plain**2 @ importance).sum()
