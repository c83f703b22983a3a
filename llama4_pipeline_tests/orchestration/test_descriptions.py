"""An asset's description answers: what is this, what does it need, how long does it take here."""

import re
from pathlib import Path

import pytest

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.orchestration.descriptions import describe
from llama4_pipeline.stages import STAGES


def test_a_description_answers_three_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARTIFACTS_VARIABLE, str(tmp_path))

    def make(out: Path) -> dict[str, object]:
        (out / "model.onnx").write_text("graph")
        return {}

    Store(tmp_path).get_or_make(Recipe(stage="benchmarks", model="tiny", code_version=""), make)
    text = describe(STAGES["benchmarks"])
    assert text.startswith(STAGES["benchmarks"].description)
    assert "Needs checkpoint, datasets, pytorch_baseline, " in text
    assert "; the GPU for itself, where there is one; a machine that computes nothing else." in text
    assert re.search(r"\| tiny \| 1\.\d+ GB \| .+ \| [\d.]+ s \|", text), "took a time here"
    assert re.search(r"\| scout \| [\d,.]+ GB \| .+ \| \? \|", text), "was not built here yet"
