"""What logits predict, in float64: small divergences drown in float32's rounding."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """KL(expected || got) in nats, of log probabilities over the last axis; what `expected` rules out adds nothing."""
    probability = np.exp(expected)
    with np.errstate(invalid="ignore"):
        terms = probability * (expected - got)
    return np.where(probability == 0, 0.0, terms).sum(axis=-1)
