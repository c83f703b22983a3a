"""What is wrong with a model's data is told before the model is loaded, and before anything is made of it."""

from pathlib import Path

import pytest

from llama4_pipeline.builders.datasets import build
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint


def test_own_data_is_looked_at_before_the_model_is_loaded(
    tiny_random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "my own words"}\n')
    monkeypatch.setattr(Checkpoint, "load_model", lambda *_: pytest.fail("it was loaded"))
    parameters = {"cover_experts": True, "sources": {"calibration": str(few)}}
    with pytest.raises(InputError, match=r"few\.jsonl holds 1 samples"):
        build({"checkpoint": tiny_random_checkpoint}, parameters, tmp_path)


def test_tasks_fit_the_context(
    tiny_random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"cover_experts": False, "max_context": 2048}
    build({"checkpoint": tiny_random_checkpoint}, parameters, tmp_path)
    monkeypatch.setattr(Checkpoint, "load_model", lambda *_: pytest.fail("it was loaded"))
    words = r"summarise \(built in\): task prompt \d+ has \d+ tokens; with 48 .* fit a context of 64: "
    with pytest.raises(InputError, match=words):
        short = {"cover_experts": True, "max_context": 64}
        build({"checkpoint": tiny_random_checkpoint}, short, tmp_path)
