"""Calibration from a file of samples, such as the one that the datasets stage writes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama4_pipeline.data.samples import read_samples, text_of
from llama4_pipeline.graph.quantize.calibration import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 512  # tokens of a sequence; a longer text is cut


def read_calibration(source: str | Path, tokenizer: "PreTrainedTokenizerBase") -> Calibration:
    """Tokenizes samples; those of tasks with their answers, as the model was meant to see them.

    Args:
        source: what `read_samples` takes.
        tokenizer: of the model.

    Raises:
        InputError: the source is missing, empty, or has a bad row.
    """
    sequences = [
        np.asarray(tokenizer(text_of(sample), verbose=False)["input_ids"], np.int64)
        for sample in read_samples(source)
    ]
    pieces = (
        sequence[start : start + _LONGEST]
        for sequence in sequences
        for start in range(0, len(sequence), _LONGEST)
    )
    return Calibration(tuple(piece for piece in pieces if len(piece) > 1))
