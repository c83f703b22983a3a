"""Calibration from a file: samples, such as those that the datasets stage writes, or token ids.

A JSONL file of token ids, for texts that are tokenized already or a model without tokenizer, holds one text a line:

    {"input_ids": [128000, 791, 6864]}
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama4_pipeline.data.samples import form_of, read_samples, text_of
from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import read_text_config
from llama4_pipeline.llama4.tokenizer import load_tokenizer, require_in_vocabulary

_LONGEST = 512  # tokens of a sequence; a longer text is cut
_TOKENS = "input_ids"


def read_calibration(source: str | Path, directory: Path) -> Calibration:
    """Reads what `read_tokens` does, in pieces of 512 tokens at most.

    Raises:
        InputError: as `read_tokens`, or the source has no two tokens that follow each other.
    """
    pieces = (
        sequence[start : start + _LONGEST]
        for sequence in read_tokens(source, directory)
        for start in range(0, len(sequence), _LONGEST)
    )
    calibration = Calibration(tuple(piece for piece in pieces if len(piece) > 1))
    if not calibration.sequences:
        raise InputError(f"{source} holds no text of two tokens: give more text")
    return calibration


def read_tokens(source: str | Path, directory: Path) -> Iterator[np.ndarray]:
    """Reads token ids, or samples and tokenizes them; those of tasks with their answers, as the model meets them.

    Args:
        source: what `read_samples` takes, or a JSONL file of token ids.
        directory: of the checkpoint or graph, with its tokenizer; for token ids config.json is enough.

    Yields:
        int64 [tokens] of each text.

    Raises:
        InputError: the source is missing, empty or has a bad row; the tokenizer is missing; or a token is outside the
            model's vocabulary.
    """
    return _token_ids(Path(source), directory) if _holds_token_ids(source) else _texts(source, directory)


def _texts(source: str | Path, directory: Path) -> Iterator[np.ndarray]:
    tokenizer, vocabulary = load_tokenizer(directory), _vocabulary(directory)
    for sample in read_samples(source):
        ids = tokenizer(text_of(sample), verbose=False)[_TOKENS]
        require_in_vocabulary(ids, vocabulary, directory)
        yield np.asarray(ids, np.int64)


def _holds_token_ids(source: str | Path) -> bool:
    """Whether the first row of a JSONL file has token ids and no text; samples may have further keys."""
    file = Path(source)
    if not file.is_file() or form_of(file) != "jsonl":
        return False
    _, first = next(_lines(file), (0, b"null"))
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and _TOKENS in row and not row.keys() & {"text", "task"}


def _token_ids(file: Path, directory: Path) -> Iterator[np.ndarray]:
    vocabulary = _vocabulary(directory)
    for number, line in _lines(file):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON ({error})") from None
        ids = row.get(_TOKENS) if isinstance(row, dict) else None
        if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
            raise InputError(f"{place}: '{_TOKENS}' is missing or empty, expected a list of token ids")
        for token in (min(ids), max(ids)):
            if not 0 <= token < vocabulary:
                raise InputError(
                    f"{place}: token id {token} is outside the model's vocabulary, 0 to {vocabulary - 1}"
                )
        yield np.asarray(ids, np.int64)


def _vocabulary(directory: Path) -> int:
    return Architecture.from_config(read_text_config(directory)).vocab_size


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line
