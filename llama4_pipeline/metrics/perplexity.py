"""Perplexity by a sliding window with a stride, every token of a text scored exactly once.

The windows are those of the Hugging Face guide (https://huggingface.co/docs/transformers/perplexity): each
holds at most `context` tokens, starts `stride` after the one before, and scores what none before it has.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.probabilities import log_softmax
from llama4_pipeline.progress import Progress
from llama4_pipeline.runtime.decoder import Decoder

_LONGEST_CONTEXT = 1024
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood), its standard error, and the exact number of tokens behind it."""

    value: float
    stderr: float
    tokens: int

    @classmethod
    def from_losses(cls, losses: np.ndarray) -> "Perplexity":
        """Pools the negative log-likelihoods (nats, [tokens]) of all documents."""
        with np.errstate(over="ignore"):  # a broken model's is infinite
            value = float(np.exp(losses.mean()))
        return cls(value, value * standard_error(losses), losses.size)


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document, of which the last `scored` are predicted."""

    start: int
    stop: int
    scored: int


def measure_perplexity(
    decoder: Decoder,
    documents: Sequence[np.ndarray],
    *,
    context: int | None = None,
    stride: int | None = None,
) -> Perplexity:
    """Measures the perplexity of a decoder on tokenized documents.

    A document of n tokens gives n - 1 predictions: its first token is the condition, so a tokenizer that
    begins a text with a special token has all of the text scored. Documents do not see each other.

    Args:
        decoder: any engine.
        documents: int64 [tokens] each.
        context: longest window in tokens; by default what the decoder holds, at most 1,024.
        stride: tokens between the starts of two windows; by default half the context.

    Raises:
        InputError: context or stride do not fit the decoder, or no document has two tokens.
        CheckFailed: logits hold NaN or infinity.
    """
    losses = []
    with Progress("perplexity", total=count_targets(documents), unit="tokens") as progress:
        for logits, targets in predictions(decoder, documents, context, stride):
            losses.append(token_losses(logits, targets))
            progress.advance(len(targets))
    return Perplexity.from_losses(np.concatenate(losses))


def predictions(
    decoder: Decoder, documents: Sequence[np.ndarray], context: int | None = None, stride: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs the windows; yields of each float32 logits [scored, vocab] and the int64 tokens [scored].

    Arguments are checked and windows run as the iterator is consumed; one window's logits live at a time.

    Raises:
        CheckFailed: logits hold NaN or infinity.
        InputError: as in `measure_perplexity`.
    """
    context, stride = _window_sizes(decoder, context, stride)
    if not count_targets(documents):
        raise InputError("perplexity needs a text of at least two tokens; give a longer file")
    for document in documents:
        if len(document) and not 0 <= document.min() <= document.max() < decoder.vocab_size:
            raise InputError(
                f"a text has the token id {document.max()}, outside the vocabulary of {decoder.engine}, 0 to "
                f"{decoder.vocab_size - 1}: put the model's own tokenizer beside it"
            )
        for window in windows(len(document), context, stride):
            decoder.reset()
            tokens = np.asarray(document[window.start : window.stop], dtype=np.int64)
            logits = decoder.forward(tokens[None, :-1], logits_to_keep=window.scored)
            if not (logits < np.inf).all():  # -inf is a token that cannot come
                raise CheckFailed(
                    f"logits of {decoder.engine} hold NaN or infinity: the model or its weights are broken"
                )
            yield logits[0], tokens[-window.scored :]


def count_targets(documents: Sequence[np.ndarray]) -> int:
    """Number of predictions that the documents give."""
    return sum(max(0, len(document) - 1) for document in documents)


def default_context(*decoders: Decoder) -> int:
    """The longest window that all decoders hold, at most 1,024 tokens: each costs vocabulary x 4 bytes."""
    return min(_LONGEST_CONTEXT, *(decoder.max_context for decoder in decoders))


def windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a document in order; together they score its tokens 1 to tokens - 1, each once."""
    scored_until = 1
    for start in range(0, tokens, stride):
        stop = min(start + context, tokens)
        if stop > scored_until:
            yield Window(start, stop, stop - scored_until)
            scored_until = stop
        if stop == tokens:
            return


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood in nats, float64 [tokens], of each target under logits [tokens, vocab]."""
    losses = [
        -log_softmax(logits[rows])[np.arange(len(targets[rows])), targets[rows]]
        for rows in row_blocks(*logits.shape)
    ]
    return np.concatenate(losses)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over the rows of at most 4 million elements: float64 work stays small beside the logits."""
    size = max(1, _BLOCK_ELEMENTS // columns)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def standard_error(samples: np.ndarray) -> float:
    """Standard error of the mean of samples [n]; NaN for fewer than two."""
    return float(samples.std(ddof=1) / math.sqrt(samples.size)) if samples.size > 1 else math.nan


def _window_sizes(decoder: Decoder, context: int | None, stride: int | None) -> tuple[int, int]:
    if context is None:
        context = default_context(decoder)
    if not 2 <= context <= decoder.max_context:
        raise InputError(
            f"context {context} does not fit {decoder.engine}: choose from 2 to {decoder.max_context} tokens"
        )
    if stride is None:
        stride = max(1, context // 2)
    if not 1 <= stride < context:
        raise InputError(
            f"stride {stride} does not fit a context of {context}: choose from 1 to {context - 1}"
        )
    return context, stride
