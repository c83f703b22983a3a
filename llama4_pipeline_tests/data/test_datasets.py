"""The built-in data sets are large enough and disjoint; the user's own take their place."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.data.corpus import Splits
from llama4_pipeline.data.coverage import ExpertShares
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


class OneExpertForZip:
    """Every token goes to the first of two experts, but for texts about zip files."""

    experts = ((0, 0), (0, 1))

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[10, 10 if "zip" in text.lower() else 0] for text in texts])


def test_calibration_is_drawn_to_reach_every_expert(
    tmp_path: Path, built: tuple[Path, DatasetsReport], caplog: pytest.LogCaptureFixture
):
    usual = read_samples(built[0] / "calibration.jsonl")
    reach = OneExpertForZip()
    [_, reached] = reach.count([content(sample) for sample in usual]).sum(0) / (10 * len(usual))
    report = build_datasets(tmp_path, experts=ExpertShares(reach, least=1.1 * reached))
    assert report.datasets["calibration"].samples == len(usual)
    assert report.coverage is not None and report.coverage.starved == ()
    assert "starved" not in caplog.text
    build_datasets(tmp_path, experts=ExpertShares(reach, least=0.45))
    assert "calibration: expert 1 of layer 0 is starved" in caplog.text


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
