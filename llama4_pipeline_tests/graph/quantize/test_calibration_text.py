"""Calibration from samples and from token ids."""

import json
import shutil
from pathlib import Path

import pytest

from llama4_pipeline.data.samples import ClassifySample, SummariseSample, TextSample, write_samples
from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.calibration_text import read_calibration, read_tokens


@pytest.fixture
def without_tokenizer(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    """A model of 131 tokens."""
    (tmp_path / "model").mkdir()
    shutil.copyfile(tiny_random_checkpoint / "config.json", tmp_path / "model" / "config.json")
    return tmp_path / "model"


def test_samples_of_every_kind_turn_to_sequences(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    samples = [
        TextSample("the of and " * 300),
        SummariseSample("the of and", "to in"),
        ClassifySample("the of", ("is", "that"), "is"),
    ]
    write_samples(samples, tmp_path / "samples.jsonl")
    sequences = read_calibration(tmp_path / "samples.jsonl", tiny_random_checkpoint).sequences
    assert [len(sequence) for sequence in sequences] == [512, 388, 5, 3]
    texts = read_tokens(tmp_path / "samples.jsonl", tiny_random_checkpoint)
    assert [len(text) for text in texts] == [900, 5, 3], "whole texts are not cut"


def test_token_ids_need_no_tokenizer(without_tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "ids.jsonl"
    file.write_text(f'{{"input_ids": [3, 0, 130]}}\n\n{{"input_ids": {[7] * 514}, "source": "a"}}\n')
    sequences = read_calibration(file, without_tokenizer).sequences
    assert sequences[0].tolist() == [3, 0, 130]
    assert [len(sequence) for sequence in sequences] == [3, 512, 2]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"input_ids": [5, 131]}', "token id 131 is outside the model's vocabulary, 0 to 130"),
        ('{"input_ids": [-1, 5]}', "token id -1 is outside"),
        ('{"input_ids": [1.0]}', "'input_ids' is missing or empty, expected a list of token ids"),
        ('{"input_ids": []}', "'input_ids' is missing or empty"),
        ('{"text": "the of"}', "'input_ids' is missing or empty"),
        ("[1, 2]", "'input_ids' is missing or empty"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_of_token_ids_is_named(
    row: str, fault: str, without_tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [1, 2]}\n' + row)
    with pytest.raises(InputError, match=f"ids.jsonl, line 2: {fault}"):
        read_calibration(tmp_path / "ids.jsonl", without_tokenizer)


def test_a_tokenizer_of_another_model_is_refused(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_random_checkpoint, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 5}))
    (tmp_path / "text.txt").write_text("the of and to in")
    with pytest.raises(
        InputError, match=r"its tokenizer gives token id \d+, outside the model's vocabulary, 0 to 4"
    ):
        read_calibration(tmp_path / "text.txt", model)


def test_a_sample_may_carry_token_ids_that_nobody_reads(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"text": "the of and", "input_ids": [99999]}')
    [sequence] = read_calibration(tmp_path / "samples.jsonl", tiny_random_checkpoint).sequences
    assert len(sequence) == 3


def test_token_ids_are_known_by_a_suffix_in_any_case(tiny_random_checkpoint: Path, tmp_path: Path):
    (tmp_path / "ids.JSONL").write_text('{"input_ids": [1, 2, 3]}\n')
    [sequence] = read_calibration(tmp_path / "ids.JSONL", tiny_random_checkpoint).sequences
    assert sequence.tolist() == [1, 2, 3]
