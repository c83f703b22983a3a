"""How far an engine's predictions are from a reference's on the same text.

The figures are those of llama.cpp's `llama-perplexity --kl-divergence`: the Kullback-Leibler divergence
KL(reference || engine) at every scored position, the share of positions with the same most likely token, and
the ratio of the two perplexities, whose standard error is that of the paired differences (far smaller than
that of either alone).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.perplexity import (
    Perplexity,
    count_targets,
    default_context,
    predictions,
    row_blocks,
    standard_error,
)
from llama4_pipeline.probabilities import kl_divergence, log_softmax
from llama4_pipeline.progress import Progress
from llama4_pipeline.runtime.decoder import Decoder


@dataclass(frozen=True)
class Divergence:
    """Divergences in nats over all scored tokens; top-1 agreement is a share from 0 to 1."""

    mean: float
    stderr: float
    p99: float
    maximum: float
    top1_agreement: float
    top1_stderr: float
    perplexity: Perplexity
    reference_perplexity: Perplexity
    perplexity_ratio: float
    perplexity_ratio_stderr: float

    @property
    def tokens(self) -> int:
        return self.perplexity.tokens


def measure_divergence(
    decoder: Decoder,
    reference: Decoder,
    documents: Sequence[np.ndarray],
    *,
    context: int | None = None,
    stride: int | None = None,
) -> Divergence:
    """Runs both decoders side by side, window by window; one window's logits of each live at a time.

    Args:
        decoder: the engine that is judged.
        reference: the engine it is held against, of the same vocabulary.
        documents: int64 [tokens] each.
        context, stride: as in `measure_perplexity`; the context defaults to what both decoders hold.

    Raises:
        InputError: the vocabularies differ, or as in `measure_perplexity`.
        CheckFailed: logits hold NaN or infinity.
    """
    if decoder.vocab_size != reference.vocab_size:
        raise InputError(
            f"vocabularies differ: {decoder.engine} has {decoder.vocab_size} tokens, the reference "
            f"{reference.engine} {reference.vocab_size}; give the checkpoint that the graph was made from"
        )
    if context is None:
        context = default_context(decoder, reference)
    windows = zip(
        predictions(decoder, documents, context, stride),
        predictions(reference, documents, context, stride),
        strict=True,
    )
    compared = []
    with Progress("divergence", total=count_targets(documents), unit="tokens") as progress:
        for (logits, targets), (reference_logits, _) in windows:
            compared.append(_compare(logits, reference_logits, targets))
            progress.advance(len(targets))
    return _summarize(compared)


@dataclass(frozen=True)
class _Tokens:
    """What one window says of each of its scored tokens; arrays [tokens]."""

    divergence: np.ndarray
    agrees: np.ndarray
    losses: np.ndarray
    reference_losses: np.ndarray


def _compare(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> _Tokens:
    blocks = []
    for rows in row_blocks(*logits.shape):
        engine_log, reference_log = log_softmax(logits[rows]), log_softmax(reference[rows])
        each = np.arange(len(engine_log))
        blocks.append(
            (
                kl_divergence(reference_log, engine_log).clip(min=0.0),
                engine_log.argmax(axis=-1) == reference_log.argmax(axis=-1),
                -engine_log[each, targets[rows]],
                -reference_log[each, targets[rows]],
            )
        )
    return _Tokens(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _summarize(windows: Sequence[_Tokens]) -> Divergence:
    divergence = np.concatenate([window.divergence for window in windows])
    agrees = np.concatenate([window.agrees for window in windows]).astype(np.float64)
    losses = np.concatenate([window.losses for window in windows])
    reference_losses = np.concatenate([window.reference_losses for window in windows])
    differences = losses - reference_losses
    with np.errstate(over="ignore"):  # a broken model's is infinite
        ratio = float(np.exp(differences.mean()))
    return Divergence(
        mean=float(divergence.mean()),
        stderr=standard_error(divergence),
        p99=float(np.quantile(divergence, 0.99)),
        maximum=float(divergence.max()),
        top1_agreement=float(agrees.mean()),
        top1_stderr=standard_error(agrees),
        perplexity=Perplexity.from_losses(losses),
        reference_perplexity=Perplexity.from_losses(reference_losses),
        perplexity_ratio=ratio,
        perplexity_ratio_stderr=ratio * standard_error(differences),
    )
