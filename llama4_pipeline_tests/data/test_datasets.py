"""The built-in data sets are large enough and disjoint; the user's own take their place."""

import json
from pathlib import Path

import pytest

from llama4_pipeline.data.corpus import Splits
from llama4_pipeline.data.datasets import DatasetsReport, DataSources, build_datasets
from llama4_pipeline.data.samples import ClassifySample, SummariseSample, content, read_samples
from llama4_pipeline.data.tasks import classify_examples, summarise_examples
from llama4_pipeline.data.tokenizer import train_tokenizer
from llama4_pipeline.errors import InputError

_NAMES = ("calibration", "validation", "summarise", "classify")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetsReport]:
    out = tmp_path_factory.mktemp("datasets")
    tokenizer = train_tokenizer(["the text of this tokenizer"], 300, 512)
    return out, build_datasets(out, tokenizer=tokenizer)


def test_the_report_counts_what_the_files_hold(built: tuple[Path, DatasetsReport]):
    out, report = built
    for name in _NAMES:
        assert report.datasets[name].samples == len(read_samples(out / f"{name}.jsonl"))
        assert (report.datasets[name].tokens or 0) > report.datasets[name].samples
    assert report.datasets["calibration"].samples >= 1000
    assert json.loads(json.dumps(report.to_json()))["classify"]["source"] == "built in"


def test_no_content_is_in_two_data_sets(built: tuple[Path, DatasetsReport]):
    contents = {
        name: {content(sample) for sample in read_samples(built[0] / f"{name}.jsonl")} for name in _NAMES
    }
    for first in _NAMES:
        for second in _NAMES:
            assert first == second or not contents[first] & contents[second]


def test_no_task_text_is_part_of_calibration_or_training(built: tuple[Path, DatasetsReport], splits: Splits):
    train = splits.train
    learned = " ".join(content(sample) for sample in read_samples(built[0] / "calibration.jsonl"))
    learned += " ".join(" ".join(section.text.split()) for section in train)
    for name in ("summarise", "classify"):
        for sample in read_samples(built[0] / f"{name}.jsonl"):
            assert isinstance(sample, SummariseSample | ClassifySample)
            text = sample.prompt.partition(":\n")[2].rpartition("\n\n")[0]
            assert (" ".join(text.split()) in learned) is False, text
    prompts = {example.prompt for example in (*classify_examples(train), *summarise_examples(train))}
    assert not prompts & {sample.prompt for sample in read_samples(built[0] / "classify.jsonl")}  # type: ignore[union-attr]


def test_the_same_files_every_time(built: tuple[Path, DatasetsReport], tmp_path: Path):
    build_datasets(tmp_path)
    for name in _NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (built[0] / f"{name}.jsonl").read_bytes()


def test_own_validation_text(tmp_path: Path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "my own words"}\n')
    report = build_datasets(tmp_path, sources=DataSources(validation=str(own)))
    assert (tmp_path / "validation.jsonl").read_text() == own.read_text()
    assert report.datasets["validation"].source == str(own)


def test_own_data_is_refused_where_it_does_not_fit(tmp_path: Path, built: tuple[Path, DatasetsReport]):
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "my own words"}\n')
    with pytest.raises(InputError, match=r"few.jsonl holds 1 samples: calibration needs at least 1000"):
        build_datasets(tmp_path, sources=DataSources(calibration=str(few)))
    with pytest.raises(
        InputError, match=r"few.jsonl, sample 1: a TextSample cannot stand in the classify data set"
    ):
        build_datasets(tmp_path, sources=DataSources(classify=str(few)))
    with pytest.raises(InputError, match="sample 1 of validation stands in calibration too"):
        build_datasets(tmp_path, sources=DataSources(validation=str(built[0] / "calibration.jsonl")))
