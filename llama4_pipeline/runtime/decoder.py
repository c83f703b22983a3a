"""What every engine offers: a model, its key-value cache, and one call that appends tokens.

The rules about padding live here too, so that all engines read a mask the same way.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.sampling import Sampling


class Decoder(Protocol):
    """One engine that holds a model and its key-value cache. Stateful: each `forward` appends to the cache."""

    engine: str
    vocab_size: int
    max_context: int
    """Tokens the cache can hold, padding included; `UNLIMITED` where the engine sets no bound."""
    mask: np.ndarray
    """int64 [B, cached]: which cached tokens are real (1) and which are padding (0); [0, 0] after `reset`."""

    def reset(self) -> None:
        """Empties the cache."""

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        """Appends tokens to the cache and returns their logits.

        A call that is refused for what it was given leaves the cache as it was. A run that does not come to its end
        leaves it empty: some layers hold its tokens by then, in a chunked layer where the chunk before stood.

        Args:
            input_ids: int64 [B, S], appended to the cache.
            attention_mask: int64 [B, T] over cached and new tokens, Hugging Face convention, padding on either
                side. None: the cached tokens keep their mask and every new token is real.
            logits_to_keep: 0 returns logits of every position, n those of the last n.

        Returns:
            float32 [B, S or kept, vocab]. Logits at padding positions mean nothing.

        Raises:
            InputError: bad shapes, tokens outside the vocabulary, more tokens than `max_context`, or no memory.
        """

    def cache_bytes(self) -> int:
        """Bytes allocated for the key-value cache now."""

    def providers(self) -> dict[str, int]:
        """Who runs the nodes: execution provider -> number of nodes; 0 where an engine has no graph nodes."""

    def close(self) -> None:
        """Frees the model and the cache."""


@runtime_checkable
class GeneratesItself(Protocol):
    """An engine whose own scheduler runs the decode loop; stepping it from outside would not measure it."""

    def stream(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop_tokens: Sequence[int],
        seed: int,
    ) -> Iterator[np.ndarray]:
        """Yields int64 [B] per step, as `generate` does."""


UNLIMITED = 2**31 - 1
EMPTY_MASK = np.zeros((0, 0), dtype=np.int64)


def require_tokens(input_ids: np.ndarray) -> None:
    """Refuses what is not int64 [B, S] with at least one token.

    Raises:
        InputError: names the shape.
    """
    if input_ids.ndim != 2 or input_ids.size == 0:
        raise InputError(
            f"input_ids has shape {list(input_ids.shape)}; give [batch, sequence] with at least one token"
        )


def extend_mask(
    cached: np.ndarray,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    *,
    vocab_size: int,
    max_context: int,
) -> np.ndarray:
    """Checks one `forward` call and returns its full mask.

    Args:
        cached: int64 [B, P], mask of the cached tokens ([0, 0] when the cache is empty).
        input_ids: int64 [B, S].
        attention_mask: int64 [B, P + S] or None.
        vocab_size: ids must lie in [0, vocab_size).
        max_context: most tokens a row may hold.

    Returns:
        int64 [B, P + S].

    Raises:
        InputError: what does not fit, and what to do.
    """
    require_tokens(input_ids)
    batch, new = input_ids.shape
    past = cached.shape[1]
    if past and cached.shape[0] != batch:
        raise InputError(
            f"the cache holds {cached.shape[0]} rows and the input {batch}; call reset() before another batch"
        )
    if input_ids.astype(np.uint64).max() >= vocab_size:  # a negative id is a huge one without its sign
        raise InputError(f"input_ids has ids outside [0, {vocab_size}); use the tokenizer of this model")
    if past + new > max_context:
        raise InputError(
            f"{past + new} tokens do not fit: the model was exported for {max_context}; "
            "export it with a larger --max-context"
        )
    before = cached if past else np.zeros((batch, 0), dtype=np.int64)
    if attention_mask is None:
        return np.concatenate([before, np.ones((batch, new), dtype=np.int64)], axis=1)
    if attention_mask.shape != (batch, past + new):
        raise InputError(
            f"attention_mask has shape {list(attention_mask.shape)}; "
            f"it must cover cache and input: {[batch, past + new]}"
        )
    given = attention_mask[:, past:]
    sound = given == given.astype(bool)
    if not sound.all():
        raise InputError(
            f"attention_mask holds {given[~sound][0]}; give 1 for real tokens and 0 for padding, nothing else"
        )
    mask = attention_mask.astype(np.int64, copy=False)
    if not np.array_equal(mask[:, :past], before):
        raise InputError(
            "attention_mask changes the mask of tokens already cached; call reset() and feed them again"
        )
    if not past and not mask.any(axis=1).all():
        raise InputError("attention_mask hides every token of a row; each row needs at least one token")
    return mask


def over_cache(cached: np.ndarray, new_mask: np.ndarray) -> np.ndarray:
    """The mask of cached and new tokens, int64 [B, P + S]; alone [B, S] behind another batch, which `forward` refuses.

    Args:
        cached: int64 [B, P], as a decoder's `mask`.
        new_mask: int64 [B, S].
    """
    return np.concatenate([cached, new_mask], axis=1) if len(cached) == len(new_mask) else new_mask


def position_ids(mask: np.ndarray, new: int) -> np.ndarray:
    """Positions of the last `new` tokens as transformers' `generate` counts them.

    Args:
        mask: int64 [B, T].
        new: how many of the last columns to return.

    Returns:
        int64 [B, new]: number of real tokens before each one; 0 at padding.
    """
    if new == 1:
        return (mask.sum(axis=1, keepdims=True) - 1) * mask[:, -1:]
    return (np.cumsum(mask, axis=1)[:, -new:] - 1) * mask[:, -new:]
