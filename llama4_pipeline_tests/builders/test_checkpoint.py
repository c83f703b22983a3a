"""A checkpoint that the pipeline cannot use is refused where it is taken, by the name that the catalog has for it."""

from pathlib import Path

import pytest

from llama4_pipeline.builders.checkpoint import build
from llama4_pipeline.errors import InputError
from llama4_pipeline_tests.checkpoints import write_random_checkpoint


def test_a_tokenizer_is_missed_at_the_source(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "mine")
    for file in source.glob("tokenizer*"):
        file.unlink()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=rf"{source}: no tokenizer\.json; copy the tokenizer's files beside"):
        build({}, {"source": f"local:{source}"}, out)
    assert not list(out.iterdir())
