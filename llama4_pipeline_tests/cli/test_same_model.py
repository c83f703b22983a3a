"""What a graph and a checkpoint must have in common, read from the config.json of each."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama4_pipeline.cli.same_model import require_same_model
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG

_NONE = {"rope_parameters": None}


def _compare(place: Path, of_graph: dict[str, Any], of_checkpoint: dict[str, Any]) -> None:
    for name, changes in (("graph", of_graph), ("checkpoint", of_checkpoint)):
        (place / name).mkdir()
        config = PECULIAR_CONFIG | {"model_type": "llama4_text"} | changes
        (place / name / "config.json").write_text(json.dumps(config))
    architecture = Architecture.from_config(PECULIAR_CONFIG | of_checkpoint)
    require_same_model(place / "graph", str(place / "checkpoint"), architecture)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"moe_layers": []}, "experts of layer [0-3] is [1-9][0-9]* and 0;"),
        ({"vocab_size": 64}, "vocab_size is [0-9]+ and 64;"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], difference: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"are of different models: {difference}"):
        _compare(tmp_path, {}, changes)


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        (_NONE | {"rope_theta": 20000.0}, "'rope_theta': 20000.0"),
        (_NONE, "'rope_theta': 500000.0"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
            "'rope_type': 'linear'",
        ),
    ],
)
def test_another_rotation_is_another_model(changes: dict[str, Any], theirs: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _compare(tmp_path, {}, changes)
    ours, other = str(caught.value).split("rope_parameters is ")[1].split(" and ")
    assert "'rope_theta': 10000.0" in ours and theirs in other
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        _NONE | {"rope_theta": 10000},
        _NONE | {"rope_theta": 10000.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 10000.0}},
    ],
)
def test_the_same_rotation_may_be_written_otherwise(changes: dict[str, Any], tmp_path: Path) -> None:
    _compare(tmp_path, {}, changes)


def test_a_model_that_does_not_rotate_has_no_rotation_to_differ_in(tmp_path: Path) -> None:
    still = {"no_rope_layers": [0, 0, 0, 0]}
    _compare(tmp_path, still, still | _NONE | {"rope_theta": 20000.0})
