"""What ends a text, from the files beside a checkpoint or a graph."""

import json
from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
from llama4_pipeline_tests.checkpoints import write_word_tokenizer


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"generation_config.json": '{"eos_token_id": [3, 5]}', "config.json": '{"eos_token_id": 9}'},
            (3, 5),
        ),
        ({"generation_config.json": "{}", "config.json": '{"eos_token_id": 9}'}, (9,)),
        ({"config.json": "{}"}, ()),
        (
            {"generation_config.json": "{}", "config.json": '{"text_config": {"eos_token_id": [9, 8]}}'},
            (9, 8),
        ),
    ],
)
def test_stop_tokens(files: dict[str, str], expected: tuple[int, ...], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_stop_tokens(tmp_path) == expected


@pytest.mark.parametrize("written", ['"</s>"', "[3, 5.0]", "true"])
def test_what_is_no_token_id_is_refused(written: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {written}}}')
    with pytest.raises(InputError, match=r"config\.json: eos_token_id is .*: expected a token id"):
        read_stop_tokens(tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_a_configuration_of_llama_4_as_published_is_no_fault_of_the_tokenizer(
    nested: bool, tmp_path: Path
) -> None:
    """Scout's says 4 where transformers wants true."""
    text = {"model_type": "llama4_text", "attn_temperature_tuning": 4}
    config = {"model_type": "llama4", "text_config": text} if nested else text
    write_word_tokenizer(tmp_path, 100)
    expected = load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is type(expected)
    assert tokenizer("the of and")["input_ids"] == expected("the of and")["input_ids"]


def test_a_longest_text_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, 100)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": "131072"}))
    with pytest.raises(InputError, match="model_max_length is '131072': expected a number of tokens"):
        load_tokenizer(tmp_path)
