"""The decode loop, the same for every engine: prefill once, then one token per row and step, streamed."""

from collections.abc import Generator, Sequence

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import Decoder, GeneratesItself, over_cache, require_tokens
from llama4_pipeline.runtime.sampling import GREEDY, Sampler, Sampling

FINISHED = -1
"""What a row yields after its stop token."""


def generate(
    decoder: Decoder,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
) -> Generator[np.ndarray, None, None]:
    """Generates token by token.

    The prompt is appended to what the cache holds, so that a second call is a second turn; call
    `decoder.reset()` for a new conversation. The last token yielded is not in the cache yet: a second turn's
    input begins with it. Who stops early closes the generator: an engine with a scheduler goes on until then.

    Args:
        decoder: the engine.
        input_ids: int64 [B, S]; rows of different length are padded on the left (see `pad_left`).
        attention_mask: int64 [B, S] over `input_ids` only; 0 marks padding, which must be on the left.
        max_new_tokens: most tokens to yield.
        sampling: how to choose tokens.
        stop_tokens: ids that end a row; the stop token itself is yielded.
        seed: of the draws.

    Yields:
        int64 [B]: the next token of each row; `FINISHED` for rows that ended before. Ends early once all rows have.

    Raises:
        InputError: an empty prompt, one that ends in padding, or more tokens than the decoder can hold.
    """
    require_tokens(input_ids)
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask has shape {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}"
            )
        if not attention_mask[:, -1].all():
            raise InputError("a prompt ends in padding; pad rows on the left")
    if isinstance(decoder, GeneratesItself):
        yield from decoder.stream(input_ids, attention_mask, max_new_tokens, sampling, stop_tokens, seed)
        return
    sampler = Sampler(sampling, seed)
    alive = np.ones(len(input_ids), dtype=bool)
    new_ids, new_mask = input_ids, attention_mask
    for step in range(max_new_tokens):
        mask = None if new_mask is None else over_cache(decoder.mask, new_mask)
        logits = decoder.forward(new_ids, mask, logits_to_keep=1)
        tokens = np.where(alive, sampler(logits[:, -1]), FINISHED)
        yield tokens
        if len(stop_tokens):
            alive &= ~np.isin(tokens, stop_tokens)
        if not alive.any() or step == max_new_tokens - 1:
            return
        new_ids = np.where(alive, tokens, 0)[:, None]
        new_mask = None if alive.all() else alive.astype(np.int64)[:, None]


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Puts prompts of different length into one batch.

    Args:
        prompts: token ids of each row, none empty.

    Returns:
        input_ids int64 [B, longest] (0 at padding) and attention_mask int64 [B, longest].

    Raises:
        InputError: no prompt, or an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("a prompt is empty; each row needs at least one token")
    longest = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return input_ids, mask
