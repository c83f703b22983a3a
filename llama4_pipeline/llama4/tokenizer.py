"""The tokenizer that lies beside a checkpoint's weights or a graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.llama4.checkpoint_directory import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANY_OF = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a checkpoint or graph directory; code in the directory is never run.

    Raises:
        InputError: There is none, or it is broken.
    """
    if not any((directory / file).is_file() for file in _ANY_OF):
        raise InputError(f"{directory}: no tokenizer.json; copy the tokenizer's files beside config.json")
    from transformers import AutoTokenizer, Llama4TextConfig

    try:
        # Else it reads config.json too, and is stricter there than what reads the model (`text_config.py`).
        tokenizer = AutoTokenizer.from_pretrained(directory, config=Llama4TextConfig())
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise InputError(f"{directory}: the tokenizer does not load: {one_line(error)}") from error
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise InputError(
            f"{directory}/tokenizer_config.json: model_max_length is {longest!r}: expected a number of tokens"
        )
    return tokenizer


def require_in_vocabulary(ids: Sequence[int], vocab_size: int, place: Path | str) -> None:
    """Refuses token ids that the model has no embedding for.

    Args:
        ids: Of one text, as a tokenizer gave them.
        vocab_size: Of the model.
        place: Where the tokenizer lies.

    Raises:
        InputError: The largest is outside the vocabulary.
    """
    if (largest := max(ids, default=0)) >= vocab_size:
        raise InputError(
            f"{place}: its tokenizer gives token id {largest}, outside the model's vocabulary, "
            f"0 to {vocab_size - 1}: put the model's own tokenizer there"
        )


def read_stop_tokens(directory: Path) -> tuple[int, ...]:
    """The ids that end a text: eos_token_id of generation_config.json, which may list several, or of config.json.

    Raises:
        InputError: what stands there is no id.
    """
    for file in ("generation_config.json", "config.json"):
        if (directory / file).is_file():
            values = read_json(directory / file)
            text = values.get("text_config")  # of the multimodal class
            found = values.get("eos_token_id")
            if found is None and isinstance(text, dict):
                found = text.get("eos_token_id")
            if found is not None:
                tokens = tuple(found) if isinstance(found, list) else (found,)
                if any(type(token) is not int for token in tokens):
                    raise InputError(
                        f"{directory / file}: eos_token_id is {found!r}: expected a token id, or a list of them"
                    )
                return tokens
    return ()
