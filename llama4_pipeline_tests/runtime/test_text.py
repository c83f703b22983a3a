"""Text that is streamed is the text that is decoded at once."""

from typing import TYPE_CHECKING

import pytest

from llama4_pipeline.runtime.text import decode_stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE without merges: every character beyond ASCII takes several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("text", ["plain words, two  spaces", "naïve 日本語 and 🦙🦙", "line\n\nline\n"])
def test_pieces_are_whole_characters_and_add_up(byte_tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    ids = byte_tokenizer(text)["input_ids"]
    pieces = list(decode_stream(byte_tokenizer, ids))
    assert "".join(pieces) == text
    assert all(piece and "\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_special_tokens_are_not_shown(byte_tokenizer: "PreTrainedTokenizerBase") -> None:
    ids = [*byte_tokenizer("end")["input_ids"], byte_tokenizer.eos_token_id]
    assert "".join(decode_stream(byte_tokenizer, ids)) == "end"


def test_text_that_ends_inside_a_character_keeps_the_whole_ones_before(
    byte_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    ids = byte_tokenizer("ab日")["input_ids"]
    assert "".join(decode_stream(byte_tokenizer, ids[:-1])) == "ab"
    doubled = byte_tokenizer.add_tokens(["é\N{REPLACEMENT CHARACTER}"]) and len(byte_tokenizer) - 1
    assert "".join(decode_stream(byte_tokenizer, [*ids, doubled])) == "ab日é"
