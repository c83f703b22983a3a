"""The data sets that quantisation and quality figures use, as files; `samples.py` describes their records."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import chain, permutations
from pathlib import Path
from typing import Any

from llama4_pipeline.data.corpus import (
    Section,
    Shingle,
    documents,
    read_corpus,
    repeats,
    shingles,
    split_corpus,
)
from llama4_pipeline.data.coverage import Coverage, ExpertShares
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
from llama4_pipeline.data.tasks import (
    Example,
    balanced,
    classify_examples,
    evenly,
    held_out_examples,
    pieces,
    summarise_examples,
)
from llama4_pipeline.errors import InputError

_logger = logging.getLogger(__name__)

FEWEST_CALIBRATION_SAMPLES = 1000
_CALIBRATION_SAMPLES = 1280  # of the built-in text
_CALIBRATION_CHARACTERS = 900
_CALIBRATION_TASK_SHARE = 0.2
_TASK_SAMPLES = 200  # of each built-in task at most
_BUILT_IN = "built in"
_CALIBRATION = "calibration"


@dataclass(frozen=True)
class DataSources:
    """Where each data set comes from: None for the text that Python brings, else what `read_samples` takes."""

    calibration: str | None = None
    validation: str | None = None
    summarise: str | None = None
    classify: str | None = None


@dataclass(frozen=True)
class DataSet:
    """One file that was written: its samples, and where they come from."""

    file: str
    samples: int
    source: str


@dataclass(frozen=True)
class DatasetsReport:
    """What `build_datasets` wrote, by name of the data set, and which experts the calibration text reaches."""

    datasets: dict[str, DataSet]
    coverage: Coverage | None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {name: asdict(dataset) for name, dataset in self.datasets.items()}


def build_datasets(
    out: Path,
    *,
    sources: DataSources | None = None,
    accept: Callable[[Sequence[Sample]], None] | None = None,
    find_experts: Callable[[], ExpertShares | None] | None = None,
) -> DatasetsReport:
    """Writes calibration.jsonl, validation.jsonl, summarise.jsonl and classify.jsonl into a directory.

    Calibration samples come from what the embedded model was trained on, the others from held-out text; no
    content is in two files. The files hold text, for any model's tokenizer. A fifth of the built-in calibration set is
    task prompts with their answers, the rest running text.

    Args:
        out: An existing directory.
        sources: The user's own data in place of the built-in texts.
        accept: Refuses by an InputError what the model is to be judged on, own or built in.
        find_experts: Gives those of a mixture, once all else is seen to be sound: the built-in calibration text is
            drawn so that each gets its share of the tokens, and one that does not is named in a warning.

    Raises:
        InputError: A user's file has a bad row, too few calibration samples, records of another task, or a
            sample whose text stands in another data set too.
    """
    sources = sources or DataSources()
    origins = {name: source or _BUILT_IN for name, source in asdict(sources).items()}
    own = {name: _from_user(name, source) for name, source in asdict(sources).items() if source is not None}
    built_in = _built_in() if len(own) < len(origins) else {}
    judged = {
        name: own[name] if name in own else built_in[name](None) for name in origins if name != _CALIBRATION
    }
    if accept:
        for name, samples in judged.items():
            try:
                accept(samples)
            except InputError as error:
                raise InputError(f"{name} ({origins[name]}): {error}") from error
    experts = find_experts() if find_experts else None
    calibration = own[_CALIBRATION] if _CALIBRATION in own else built_in[_CALIBRATION](experts)
    datasets = {_CALIBRATION: calibration, **judged}
    _check_disjoint(datasets, origins)
    report = {}
    for name, samples in datasets.items():
        write_samples(samples, out / f"{name}.jsonl")
        report[name] = DataSet(f"{name}.jsonl", len(samples), origins[name])
        _logger.info("%s: %d samples, %s", name, len(samples), origins[name])
    return DatasetsReport(report, _coverage(calibration, experts) if experts else None)


def _built_in() -> dict[str, Callable[[ExpertShares | None], list[Sample]]]:
    """What makes each set, of which that for calibration looks at experts."""
    splits = split_corpus(read_corpus())
    classify, summarise = held_out_examples(splits, _TASK_SAMPLES)
    validation = documents(splits.validation)

    def calibration(experts: ExpertShares | None) -> list[Sample]:
        held_out = shingles(*validation, *(example.passage for example in (*classify, *summarise)))
        return _calibration(splits.train, held_out, experts)

    return {
        _CALIBRATION: calibration,
        "validation": lambda _: [TextSample(text) for text in validation],
        "summarise": lambda _: [SummariseSample(example.prompt, example.answer) for example in summarise],
        "classify": lambda _: [
            ClassifySample(example.prompt, example.choices, example.answer) for example in classify
        ],
    }


def _calibration(
    sections: Sequence[Section], held_out: Set[Shingle], experts: ExpertShares | None
) -> list[Sample]:
    """Pieces of running text and task prompts with their answers, evenly drawn, then exchanged to cover experts."""
    of_tasks = round(_CALIBRATION_SAMPLES * _CALIBRATION_TASK_SHARE)
    texts = [
        piece
        for text in documents(sections)
        for piece in pieces(text, _CALIBRATION_CHARACTERS)
        if not repeats(shingles(piece), held_out)
    ]
    examples = []
    for made in (classify_examples(sections), summarise_examples(sections)):
        usable = [example for example in made if not repeats(shingles(example.passage), held_out)]
        examples += balanced(usable, of_tasks // 8)
    drawn = evenly(range(len(texts)), _CALIBRATION_SAMPLES - of_tasks)
    of_examples = [_as_text(example) for example in examples]
    if experts:
        drawn = experts.covering(texts, drawn, of_examples)
    chosen = [texts[index] for index in drawn] + of_examples
    unique = {content(sample): sample for sample in map(TextSample, chosen)}
    if len(unique) < FEWEST_CALIBRATION_SAMPLES:
        raise InputError(
            f"this Python brings text for {len(unique)} calibration samples: give a file of your own"
        )
    return list(unique.values())


def _coverage(samples: Sequence[Sample], experts: ExpertShares) -> Coverage:
    coverage = experts.coverage([text_of(sample) for sample in samples])
    for layer, expert in coverage.starved:
        _logger.warning(
            "calibration: expert %d of layer %d is starved, %d tokens reach it; give more text, or other",
            expert, layer, coverage.tokens[layer][expert],
        )  # fmt: skip
    return coverage


def _as_text(example: Example) -> str:
    return f"{example.prompt} {example.answer}"


def _from_user(name: str, source: str) -> list[Sample]:
    samples = read_samples(source)
    expected = {"summarise": SummariseSample, "classify": ClassifySample}.get(name, TextSample)
    for number, sample in enumerate(samples, start=1):
        if not isinstance(sample, expected):
            raise InputError(
                f"{source}, sample {number}: a {type(sample).__name__} cannot stand in the {name} data set, "
                f"which holds {expected.__name__} records"
            )
    if name == _CALIBRATION and len(samples) < FEWEST_CALIBRATION_SAMPLES:
        raise InputError(
            f"{source} holds {len(samples)} samples: calibration needs at least {FEWEST_CALIBRATION_SAMPLES}"
        )
    return samples


def _check_disjoint(datasets: Mapping[str, Sequence[Sample]], origins: Mapping[str, str]) -> None:
    """The user's data and the other sets repeat nothing of each other, however it is cut.

    The built-in sets do not repeat each other: that is seen to where they are made.
    """
    texts = {name: _without_instructions(map(content, samples)) for name, samples in datasets.items()}
    known = {name: set().union(*samples) for name, samples in texts.items()}
    by_user = {name for name, origin in origins.items() if origin != _BUILT_IN}
    for name, other in permutations(sorted(datasets, key=lambda name: name not in by_user), 2):
        if not by_user & {name, other}:
            continue
        for number, own in enumerate(texts[name], start=1):
            if repeats(own, known[other]):
                raise InputError(
                    f"{origins[name]}: sample {number} of {name} stands in {other} too ({origins[other]}); "
                    "take it out of one"
                )


def _without_instructions(texts: Iterable[str]) -> list[set[Shingle]]:
    """The shingles of each text but for those of most texts: one instruction may open the prompts of several sets.

    A text that is there twice counts once, or its own would be such an instruction.
    """
    each = list(map(shingles, texts))
    distinct = set(map(frozenset, each))
    counts = Counter(chain.from_iterable(distinct))
    common = {shingle for shingle, count in counts.items() if 2 * count > len(distinct) > 1}
    return [own - common for own in each]
