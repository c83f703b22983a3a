"""What a method measures on its way is content of the graph's artifact where a later stage reads it."""

import json
from pathlib import Path

from llama4_pipeline.artifacts.manifest import describe_directory
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.builders.files import SENSITIVITY
from llama4_pipeline.builders.quantize import build
from llama4_pipeline_tests.builders.test_tradeoff import inputs_of


def test_another_sensitivity_is_another_artifact(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    inputs, out = inputs_of(tiny_random_checkpoint, tmp_path), tmp_path / "out"
    out.mkdir()
    texts = (json.dumps({"text": f"number {number} of the texts"}) for number in range(20))
    (inputs["datasets"] / "calibration.jsonl").write_text("\n".join(texts))
    facts = build(inputs, {"precision": "int4", "method": "mixed", "device": "cpu"}, out)["quantize"]
    assert json.loads((out / SENSITIVITY).read_bytes())["sensitivity"] == facts["sensitivity"] != {}

    def digest() -> str:
        recipe = Recipe(stage="int4_graph", model="tiny", code_version="")
        return describe_directory(recipe, out, {}, {}, 0.0).digest

    before = digest()
    (out / SENSITIVITY).write_text("{}")
    assert digest() != before
