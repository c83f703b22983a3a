"""The records of the data files, and reading and writing them.

A file holds one JSON object a line, each of one of three shapes:

    {"text": str}
        Running text, for calibration and perplexity.
    {"task": "summarise", "prompt": str, "reference": str}
        The prompt ends before the answer; the answer is a short line that is compared with the reference.
    {"task": "classify", "prompt": str, "choices": [str, ...], "answer": str}
        The answer is one of the choices, which differ in their first word; the model says it after one space.

Further keys are ignored. Parquet files hold the same keys as columns. Any other file is plain text, cut into samples of
at most 900 characters: at blank lines, else behind sentences, else between words. Instead of a file,
"datasets:NAME:SPLIT" or "datasets:NAME:CONFIGURATION:SPLIT" names a data set of the `datasets` library whose columns
are these keys.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from llama4_pipeline.errors import InputError

LIBRARY_PREFIX = "datasets:"
_KEYS = ("text", "task", "prompt", "reference", "choices", "answer")
_TEXT_SAMPLE_CHARACTERS = 900
_BORDERS = tuple(map(re.compile, (r"\n\s*\n", r"(?<=[.!?])\s+", r"\s+")))


@dataclass(frozen=True)
class TextSample:
    """Running text."""

    text: str


@dataclass(frozen=True)
class SummariseSample:
    """A prompt and a summary written by a person."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class ClassifySample:
    """A prompt whose answer is one of the choices."""

    prompt: str
    choices: tuple[str, ...]
    answer: str


Sample = TextSample | SummariseSample | ClassifySample


def read_samples(source: str | Path) -> list[Sample]:
    """Reads a data file, or a data set of the `datasets` library, as the top of this module describes.

    Raises:
        InputError: The source is missing, empty, or has a bad row; the message names file and line.
    """
    name = str(source)
    samples = [_sample(row, place) for place, row in _rows(name)]
    if not samples:
        raise InputError(f"{name} holds no samples: give at least one row")
    return samples


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Writes samples as JSON lines that `read_samples` reads."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            file.write(json.dumps(_record(sample), ensure_ascii=False) + "\n")


def content(sample: Sample) -> str:
    """What a sample says, without regard to blanks: two samples with the same content are the same sample."""
    return " ".join((sample.text if isinstance(sample, TextSample) else sample.prompt).split())


def text_of(sample: Sample) -> str:
    """What a model is meant to see of a sample: a task's prompt stands before its answer."""
    match sample:
        case TextSample():
            return sample.text
        case SummariseSample():
            return f"{sample.prompt} {sample.reference}"
        case ClassifySample():
            return f"{sample.prompt} {sample.answer}"


def _record(sample: Sample) -> dict[str, Any]:
    match sample:
        case TextSample():
            return asdict(sample)
        case SummariseSample():
            return {"task": "summarise", **asdict(sample)}
        case ClassifySample():
            return {"task": "classify", **asdict(sample)}


def _sample(row: Any, place: str) -> Sample:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, found {type(row).__name__}")
    match row.get("task"):
        case None:
            return TextSample(_text(row, "text", place))
        case "summarise":
            return SummariseSample(_text(row, "prompt", place), _text(row, "reference", place))
        case "classify":
            return _classify_sample(row, place)
        case task:
            raise InputError(f"{place}: unknown task {task!r}, expected 'summarise' or 'classify'")


def _classify_sample(row: dict[str, Any], place: str) -> ClassifySample:
    prompt, answer = _text(row, "prompt", place), _text(row, "answer", place)
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError(f"{place}: 'choices' must be a list of texts")
    if answer not in choices:
        raise InputError(f"{place}: the answer {answer!r} is not among the choices {choices}")
    return ClassifySample(prompt, tuple(_whole(choice, "choices", place) for choice in choices), answer)


def _text(row: dict[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: '{key}' is missing or empty, expected a text")
    return _whole(value, key, place)


def _whole(text: str, key: str, place: str) -> str:
    """The text; JSON can escape half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: '{key}' has half a character, {text[error.start]!a}, at {error.start}: cut the text elsewhere"
        ) from None
    return text


def _rows(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a source, each with the place that an error names."""
    if name.startswith(LIBRARY_PREFIX):
        yield from _library_rows(name)
        return
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name}: {_missing(path)}")
    form = form_of(path)
    if form == "parquet":
        yield from _parquet_rows(path)
    elif form == "jsonl":
        yield from _json_rows(path, _lines(path))
    else:
        for text in _passages("\n".join(_lines(path))):
            yield name, {"text": text}


def form_of(file: Path) -> Literal["jsonl", "parquet", "text"]:
    """How a data file holds its samples, by its suffix.

    Raises:
        InputError: It is named like a JSON document, of which no tokenizer makes a text worth reading.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        raise InputError(f"{file}: a JSON document is no data file: put one record a line into a .jsonl file")
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    return "parquet" if suffix == ".parquet" else "text"


def _missing(path: Path) -> str:
    if path.is_dir():
        return "a directory: name a file in it"
    return "a pipe or a device: save what it gives in a file" if path.exists() else "no such data file"


def _passages(text: str) -> Iterator[str]:
    """Cuts a text into passages that hold all of its words; only a word too long for one is cut itself."""
    start = 0
    while start < len(text):
        stop = _end_of_passage(text, start)
        if passage := text[start:stop].strip():
            yield passage
        start = stop


def _end_of_passage(text: str, start: int) -> int:
    """Where the longest passage from here ends, at the best of the borders that it holds."""
    furthest = start + _TEXT_SAMPLE_CHARACTERS
    if len(text) <= furthest:
        return len(text)
    for border in _BORDERS:
        ends = (each.start() for each in border.finditer(text, start, furthest + 2))
        if inside := [end for end in ends if start < end <= furthest]:
            return inside[-1]
    return furthest


def _lines(path: Path) -> list[str]:
    lines = []
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
    return lines


def _json_rows(path: Path, lines: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON that can be read ({error})") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        held = pyarrow.parquet.read_schema(path).names
        rows = pyarrow.parquet.read_table(path, columns=[key for key in _KEYS if key in held]).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:  # without a number it is pyarrow's, of a damaged file
            raise
        raise InputError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _library_rows(name: str) -> Iterator[tuple[str, Any]]:
    parts = name.removeprefix(LIBRARY_PREFIX).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"{name}: expected datasets:NAME:SPLIT or datasets:NAME:CONFIGURATION:SPLIT")
    if find_spec("datasets") is None:
        raise InputError(f"{name}: the datasets library is not installed; pip install datasets")
    import datasets

    *names, split = parts
    try:
        rows = datasets.load_dataset(*names, split=split)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot load it: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows, start=1):
        if not _is_blank(row):
            yield f"{name}, row {number}", row


def _is_blank(row: dict[str, Any]) -> bool:
    """Whether a row of running text is an empty line, as data sets that were cut at line breaks have them."""
    text = row.get("text")
    return "task" not in row and isinstance(text, str) and not text.strip()
