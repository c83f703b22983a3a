"""The built-in data sets are large enough and disjoint; the user's own take their place."""

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.data.corpus import Section, Splits, repeats, shingles
from llama4_pipeline.data.coverage import ExpertShares
from llama4_pipeline.data.datasets import DatasetsReport, DataSources, build_datasets
from llama4_pipeline.data.samples import (
    ClassifySample,
    Sample,
    SummariseSample,
    TextSample,
    content,
    read_samples,
    text_of,
    write_samples,
)
from llama4_pipeline.data.tasks import Example, classify_examples, summarise_examples
from llama4_pipeline.errors import InputError

_NAMES = ("calibration", "validation", "summarise", "classify")


def _passage(sample: Sample) -> str:
    """What a sample is about, without the question."""
    if isinstance(sample, TextSample):
        return sample.text
    return sample.prompt.partition(":\n")[2].rpartition("\n\n")[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetsReport]:
    out = tmp_path_factory.mktemp("datasets")
    return out, build_datasets(out)


def test_the_report_counts_what_the_files_hold(built: tuple[Path, DatasetsReport]):
    out, report = built
    for name in _NAMES:
        assert report.datasets[name].samples == len(read_samples(out / f"{name}.jsonl"))
    assert report.datasets["calibration"].samples >= 1000
    assert json.loads(json.dumps(report.to_json()))["classify"]["source"] == "built in"


def test_no_passage_is_in_two_data_sets(built: tuple[Path, DatasetsReport]):
    passages = {
        name: [shingles(_passage(sample)) for sample in read_samples(built[0] / f"{name}.jsonl")]
        for name in _NAMES
    }
    for first, second in permutations(_NAMES, 2):
        known = set().union(*passages[second])
        for number, own in enumerate(passages[first], start=1):
            assert not repeats(own, known), f"sample {number} of {first} is in {second}"


def test_no_task_text_is_part_of_calibration_or_training(built: tuple[Path, DatasetsReport], splits: Splits):
    train = splits.train
    learned = " ".join(content(sample) for sample in read_samples(built[0] / "calibration.jsonl"))
    learned += " ".join(" ".join(section.text.split()) for section in train)
    for name in ("summarise", "classify"):
        for sample in read_samples(built[0] / f"{name}.jsonl"):
            text = _passage(sample)
            assert (" ".join(text.split()) in learned) is False, text
    prompts = {example.prompt for example in (*classify_examples(train), *summarise_examples(train))}
    assert not prompts & {sample.prompt for sample in read_samples(built[0] / "classify.jsonl")}


@pytest.mark.parametrize("of_task", [classify_examples, summarise_examples])
def test_a_tenth_of_calibration_is_prompts_of_each_task_with_their_answers(
    built: tuple[Path, DatasetsReport], splits: Splits, of_task: Callable[[Sequence[Section]], list[Example]]
):
    solved = {f"{example.prompt} {example.answer}" for example in of_task(splits.train)}
    texts = [text_of(sample) for sample in read_samples(built[0] / "calibration.jsonl")]
    assert sum(text in solved for text in texts) / len(texts) == pytest.approx(0.1, abs=0.01)


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
    report = build_datasets(tmp_path, find_experts=lambda: ExpertShares(reach, least=1.1 * reached))
    assert report.datasets["calibration"].samples == len(usual)
    assert report.coverage is not None and report.coverage.starved == ()
    assert "starved" not in caplog.text
    build_datasets(tmp_path, find_experts=lambda: ExpertShares(reach, least=0.45))
    assert "calibration: expert 1 of layer 0 is starved" in caplog.text


def test_own_validation_text(tmp_path: Path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "my own words"}\n')
    report = build_datasets(tmp_path, sources=DataSources(validation=str(own)))
    assert (tmp_path / "validation.jsonl").read_text() == own.read_text()
    assert report.datasets["validation"].source == str(own)


def test_nothing_is_built_in_the_place_of_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither needs a Python whose sources are there, nor runs the model over text that nobody reads."""
    own = {name: tmp_path / f"{name}.own.jsonl" for name in _NAMES}
    write_samples(
        [TextSample(f"a text that is number {number}") for number in range(1000)], own["calibration"]
    )
    write_samples([TextSample("words to be judged on")], own["validation"])
    write_samples([SummariseSample("Title of a long story?", "Story")], own["summarise"])
    write_samples([ClassifySample("Is it warm or cold?", ("warm", "cold"), "cold")], own["classify"])
    monkeypatch.setattr("llama4_pipeline.data.datasets.read_corpus", lambda: pytest.fail("was read"))
    sources = DataSources(**{name: str(file) for name, file in own.items()})
    report = build_datasets(
        tmp_path, sources=sources, find_experts=lambda: ExpertShares(OneExpertForZip(), least=0)
    )
    assert list(report.datasets) == list(_NAMES)
    for name, file in own.items():
        assert (tmp_path / f"{name}.jsonl").read_bytes() == file.read_bytes()


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


def test_own_data_that_holds_another_sets_text_in_other_pieces_is_refused(
    tmp_path: Path, built: tuple[Path, DatasetsReport]
):
    calibration = [content(sample) for sample in read_samples(built[0] / "calibration.jsonl")]
    words = " ".join(calibration[:3]).split()
    fresh = [f"fresh{number}" for number in range(len(words))]
    own = tmp_path / "own.jsonl"
    refused = r"own.jsonl: sample 2 of validation stands in calibration too \(built in\); take it out of one"
    for second in (words, words[15:60], [*fresh, *words]):
        write_samples([TextSample(" ".join(fresh)), TextSample("\n".join(second))], own)
        with pytest.raises(InputError, match=refused):
            build_datasets(tmp_path, sources=DataSources(validation=str(own)))


def test_own_text_that_holds_a_task_whole_is_refused_however_long_it_is(
    tmp_path: Path, built: tuple[Path, DatasetsReport]
):
    task = read_samples(built[0] / "classify.jsonl")[4]
    own = tmp_path / "own.jsonl"
    write_samples([TextSample(" ".join([*map(str, range(5000)), _passage(task)]))], own)
    with pytest.raises(InputError, match=r"built in: sample 5 of classify stands in validation too \(.*own"):
        build_datasets(tmp_path, sources=DataSources(validation=str(own)))


def test_one_instruction_may_open_the_prompts_of_two_sets(tmp_path: Path):
    instruction = " ".join(f"rule{number}" for number in range(40))
    tasks = {
        "summarise": [SummariseSample(f"{instruction} text{n} a b c", "title") for n in range(3)],
        "classify": [ClassifySample(f"{instruction} word{n} d e f", ("x", "y"), "x") for n in range(3)],
    }
    for name, samples in tasks.items():
        write_samples(samples, tmp_path / f"own-{name}.jsonl")
    sources = DataSources(**{name: str(tmp_path / f"own-{name}.jsonl") for name in tasks})
    report = build_datasets(tmp_path, sources=sources)
    assert report.datasets["classify"].samples == 3


def test_a_text_that_a_set_repeats_is_no_instruction(tmp_path: Path, built: tuple[Path, DatasetsReport]):
    own = tmp_path / "own.jsonl"
    taken = content(read_samples(built[0] / "calibration.jsonl")[0])
    write_samples([TextSample(taken)] * 2, own)
    with pytest.raises(InputError, match="sample 1 of validation stands in calibration too"):
        build_datasets(tmp_path, sources=DataSources(validation=str(own)))
