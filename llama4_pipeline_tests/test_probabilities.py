import numpy as np
import pytest

from llama4_pipeline.probabilities import kl_divergence, log_softmax


def test_log_softmax_is_normalized_for_large_logits():
    assert np.exp(log_softmax(np.array([[1e4, 1e4, -1e4]], dtype=np.float32))).sum() == pytest.approx(1.0)


def test_divergence_is_that_of_the_first_from_the_second():
    expected, got = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert kl_divergence(expected, got) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
