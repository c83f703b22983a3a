"""What a key depends on, and what a person is told about a change."""

from typing import Any

import pytest

from llama4_pipeline.artifacts.recipe import Recipe, library_versions

BASE = {
    "stage": "int4_graph",
    "model": "tiny",
    "code_version": "1",
    "parameters": {"block_size": 32, "method": "rtn"},
    "inputs": {"optimized_graph": "aaa"},
    "libraries": {"onnx": "1.20.0"},
    "machine": None,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"code_version": "2"}, ["code changed"]),
        ({"parameters": {"block_size": 64, "method": "rtn"}}, ["parameter block_size: 32 -> 64"]),
        ({"parameters": {"block_size": 32}}, ['parameter method: "rtn" -> null']),
        ({"inputs": {"optimized_graph": "bbb"}}, ["input optimized_graph changed"]),
        ({"libraries": {"onnx": "1.21.0"}}, ["library onnx: 1.20.0 -> 1.21.0"]),
        ({"machine": {"cpu": "other"}}, ["machine cpu: None -> other"]),
    ],
)
def test_every_ingredient_changes_the_key(change: dict[str, Any], says: list[str]) -> None:
    before, after = Recipe(**BASE), Recipe(**BASE | change)
    assert after.key() != before.key()
    assert after.changes_since(before) == says


def test_of_a_table_only_what_changed_is_told() -> None:
    files = {
        "/data/calibration.jsonl": [99_276, 1_796_059_260_647_931_960],
        "/data/summarise.jsonl": [100, 1],
    }
    before = Recipe(**BASE | {"parameters": {"files": files}})
    after = Recipe(**BASE | {"parameters": {"files": files | {"/data/summarise.jsonl": [120, 2]}}})
    assert after.changes_since(before) == ["parameter files./data/summarise.jsonl: [100, 1] -> [120, 2]"]


def test_the_key_is_the_same_for_the_same_ingredients() -> None:
    shuffled = Recipe(**BASE | {"parameters": {"method": "rtn", "block_size": 32}, "model": "mini"})
    assert shuffled.key() == Recipe(**BASE).key()
    assert Recipe(**BASE).changes_since(Recipe(**BASE)) == []


def test_a_recipe_read_back_equals_the_one_written() -> None:
    recipe = Recipe(**BASE | {"parameters": {"lengths": (1, 7), "nested": {"batches": (1, 4)}}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_library_versions_name_what_is_there_and_what_is_not() -> None:
    versions = library_versions(["no-such-distribution", "no-such-distribution|pydantic"])
    assert versions["no-such-distribution"] == "not installed"
    assert versions["pydantic"][0].isdigit()


def test_a_path_that_is_no_utf8_can_be_written_down() -> None:
    recipe = Recipe(**BASE | {"parameters": {"calibration": "t\udce9xt.jsonl"}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
