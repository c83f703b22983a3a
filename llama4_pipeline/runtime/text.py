"""One prompt through a decoder, the answer as text, piece by piece; a message as the prompt of a chat."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.generate import generate
from llama4_pipeline.runtime.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def generate_text(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
) -> Iterator[str]:
    """Continues a prompt.

    Args:
        decoder: the engine; its cache should be empty.
        tokenizer: of the model.
        prompt: token ids of what to continue, special ones included.
        max_new_tokens: most tokens to generate; fewer, with a warning, where the decoder's context is full before.
        sampling, stop_tokens, seed: as in `generate`.

    Yields:
        Pieces of text, each whole characters, special tokens left out.

    Raises:
        InputError: the prompt has no token, or does not fit the decoder.
    """
    if not prompt:
        raise InputError("the prompt has no token: give some text")
    ids = np.asarray([prompt], dtype=np.int64)
    room = decoder.max_context - len(prompt) + 1  # the last token needs no place in the cache
    most = min(max_new_tokens, max(room, 1))
    generated: list[int] = []
    steps = generate(decoder, ids, max_new_tokens=most, sampling=sampling, stop_tokens=stop_tokens, seed=seed)

    def tokens() -> Iterator[int]:
        for step in steps:
            generated.append(int(step[0]))
            yield generated[-1]

    yield from decode_stream(tokenizer, tokens())
    if len(generated) == room < max_new_tokens and generated[-1] not in stop_tokens:
        _logger.warning("the context is full: %d tokens, prompt and text", decoder.max_context)


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", message: str, directory: Path) -> list[int]:
    """A user's message as the tokenizer's chat template puts it, up to where the model's answer begins.

    Args:
        tokenizer: of the model.
        message: the only one of the conversation.
        directory: where the tokenizer lies.

    Returns:
        Token ids; the template says which special ones.

    Raises:
        InputError: there is no template, or it does not render.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{directory}: the tokenizer has no chat template: leave out --chat, or put the model's "
            "chat_template.jinja or tokenizer_config.json there"
        )
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
        )
    except Exception as error:  # a template is a program, and fails as it likes
        raise InputError(
            f"{directory}: the chat template does not render ({one_line(error)}): put the model's own there, "
            "or leave out --chat"
        ) from error
    return cast(list[int], ids)


def decode_stream(tokenizer: "PreTrainedTokenizerBase", tokens: Iterable[int]) -> Iterator[str]:
    """Text of tokens as they come.

    A token's text depends on the one before it (spaces), and a character may need several tokens; so each piece is the
    difference between two decodings of the last few tokens, held back while it ends inside a character; what the last
    tokens leave of one is left out.
    """
    ids: list[int] = []
    context, shown = 0, 0
    for token in tokens:
        ids.append(token)
        before, after = (_text(tokenizer, part) for part in (ids[context:shown], ids[context:]))
        if len(after) > len(before) and not after.endswith(_INCOMPLETE):
            yield after[len(before) :]
            context, shown = shown, len(ids)
    before, after = (_text(tokenizer, part) for part in (ids[context:shown], ids[context:]))
    if rest := after[len(before) :].rstrip(_INCOMPLETE):
        yield rest


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=True))
