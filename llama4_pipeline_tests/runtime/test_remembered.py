from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline.runtime.remembered import RememberedDecoder


class Counted:
    """Counts what reaches an engine."""

    def __init__(self, decoder) -> None:
        self._decoder, self.calls = decoder, 0

    def __getattr__(self, name: str):
        return getattr(self._decoder, name)

    def forward(self, *arguments, **keywords) -> np.ndarray:
        self.calls += 1
        return self._decoder.forward(*arguments, **keywords)


def test_the_same_question_is_computed_once_and_only_from_a_fresh_cache(tiny_random_checkpoint: Path) -> None:
    plain = open_decoder("pytorch", checkpoint=tiny_random_checkpoint)
    counted = Counted(plain)
    remembered = RememberedDecoder(counted)
    first, second = np.array([[5, 6, 7]]), np.array([[5, 6, 8]])
    for tokens, kept, calls in ((first, 0, 1), (second, 0, 2), (first, 0, 2), (first, 1, 3)):
        remembered.reset()
        said = remembered.forward(tokens, logits_to_keep=kept)
        assert counted.calls == calls
        plain.reset()
        assert np.array_equal(said, plain.forward(tokens, logits_to_keep=kept))
    with pytest.raises(RuntimeError, match="reset it before each forward"):
        remembered.forward(second)


def test_the_same_tokens_in_other_rows_are_another_question(tiny_random_checkpoint: Path) -> None:
    remembered = RememberedDecoder(open_decoder("pytorch", checkpoint=tiny_random_checkpoint))
    tokens = np.array([[5, 6, 7, 8]])
    for shape in ((1, 4), (2, 2), (4, 1)):
        remembered.reset()
        assert remembered.forward(tokens.reshape(shape)).shape[:2] == shape


def test_what_was_said_lies_on_disk_until_it_is_closed(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    remembered = RememberedDecoder(open_decoder("pytorch", checkpoint=tiny_random_checkpoint), tmp_path)
    for token in (5, 6):
        remembered.reset()
        assert isinstance(remembered.forward(np.array([[token, 7]])), np.memmap)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    remembered.close()
    assert list(tmp_path.iterdir()) == []
