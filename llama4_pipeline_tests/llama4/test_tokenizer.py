"""What ends a text, from the files beside a checkpoint or a graph."""

from pathlib import Path

import pytest

from llama4_pipeline.llama4.tokenizer import read_stop_tokens


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"generation_config.json": '{"eos_token_id": [3, 5]}', "config.json": '{"eos_token_id": 9}'},
            (3, 5),
        ),
        ({"generation_config.json": "{}", "config.json": '{"eos_token_id": 9}'}, (9,)),
        ({"config.json": "{}"}, ()),
    ],
)
def test_stop_tokens(files: dict[str, str], expected: tuple[int, ...], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_stop_tokens(tmp_path) == expected
