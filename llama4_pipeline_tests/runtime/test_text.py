"""Text that is streamed is the text that is decoded at once."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from llama4_pipeline.runtime.text import decode_stream, generate_text

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


class Scripted:
    """A decoder that says its line whatever it is fed, and keeps that."""

    max_context = 100

    def __init__(self, line: list[int]) -> None:
        self.vocab_size = max(line) + 1
        self.mask = np.zeros((0, 0), dtype=np.int64)
        self.fed: list[list[int]] = []
        self._line = iter(line)

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0):
        self.fed.append(input_ids[0].tolist())
        return np.eye(self.vocab_size, dtype=np.float32)[[[next(self._line)]]]


def test_a_prompt_is_fed_as_it_is_and_the_token_that_ends_its_answer_is_not_shown(
    byte_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    end = byte_tokenizer.eos_token_id
    said = byte_tokenizer("yes")["input_ids"]
    decoder = Scripted([*said, end, *said])
    pieces = generate_text(decoder, byte_tokenizer, [end, 5], max_new_tokens=20, stop_tokens=[0, end])
    assert "".join(pieces) == "yes"
    assert decoder.fed == [[end, 5], *([token] for token in said)]
