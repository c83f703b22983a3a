"""Data files: read back as written, and a bad row named by file and line."""

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.data.samples import (
    ClassifySample,
    SummariseSample,
    TextSample,
    read_samples,
    write_samples,
)
from llama4_pipeline.errors import InputError

_GOOD = '{"text": "fine"}'


def test_samples_are_read_back_as_written(tmp_path: Path):
    samples = [
        TextSample('two\nlines, a quote " and \N{GREEK SMALL LETTER PI}'),
        SummariseSample("Text:\nabc\n\nTitle:", "a title"),
        ClassifySample("Which?", ("class", "function"), "class"),
    ]
    write_samples(samples, tmp_path / "samples.jsonl")
    assert read_samples(tmp_path / "samples.jsonl") == samples


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", "not JSON"),
        ("[1]", "expected an object"),
        ('{"text": 7}', "'text' is missing or empty"),
        ('{"txt": "a"}', "'text' is missing or empty"),
        ('{"task": "translate"}', "unknown task 'translate'"),
        ('{"task": "summarise", "prompt": "a"}', "'reference' is missing or empty"),
        ('{"task": "classify", "prompt": "a", "choices": "ab", "answer": "a"}', "'choices' must be a list"),
        ('{"task": "classify", "prompt": "a", "choices": ["b"], "answer": "a"}', "is not among the choices"),
        (b"\xff\xfe", "not UTF-8"),
        (r'{"text": "the \ud83d of"}', "'text' has half a character"),
        (
            r'{"task": "classify", "prompt": "a", "choices": ["b", "\ud83d"], "answer": "b"}',
            "half a character",
        ),
        ("[" * 100_000, "not JSON"),
        ("1" * 5_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, message: str):
    path = tmp_path / "own.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join([_GOOD.encode(), b"", bad, _GOOD.encode()]))
    with pytest.raises(InputError, match="own.jsonl, line 3: .*" + message) as failure:
        read_samples(path)
    assert "\n" not in str(failure.value)


def test_a_parquet_file_has_the_same_keys_as_columns(tmp_path: Path):
    path = tmp_path / "own.parquet"
    pd.DataFrame({"text": ["one", "two"]}).to_parquet(path)
    assert read_samples(path) == [TextSample("one"), TextSample("two")]
    pd.DataFrame({"text": ["one", None]}).to_parquet(path)
    with pytest.raises(InputError, match=r"own.parquet, row 2: 'text'"):
        read_samples(path)


def test_further_columns_of_a_parquet_file_may_hold_anything(tmp_path: Path):
    path = tmp_path / "own.parquet"
    never = pa.array([2**62], pa.timestamp("us"))  # a year that Python has no date for
    pq.write_table(pa.table({"text": ["one"], "changed": never}), path)
    assert read_samples(path) == [TextSample("one")]


@pytest.mark.parametrize("damaged", [slice(20, 60), slice(-60, -20)], ids=["a page", "the footer"])
def test_a_damaged_parquet_file_is_one_line(tmp_path: Path, damaged: slice):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": ["the of and to in is"] * 1000}), path)
    content = bytearray(path.read_bytes())
    content[damaged] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.parquet: not a sound Parquet file") as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("own.txt", "one"), ("own.jsonl", '{"text": "one"}')])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_samples(tmp_path / name) == [TextSample("one")]


def test_a_file_that_only_claims_to_be_parquet(tmp_path: Path):
    path = tmp_path / "own.parquet"
    path.write_text(json.dumps({"text": "a"}))
    with pytest.raises(InputError, match="not a sound Parquet file"):
        read_samples(path)


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path):
    path = tmp_path / "own.txt"
    paragraphs = [letter * 600 for letter in "abc"]
    path.write_text("\n\n".join(paragraphs))
    assert read_samples(path) == [TextSample(paragraph) for paragraph in paragraphs]


@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.sampled_from([" ", "  ", "\n", ". ", "\n\n", "\r\n \r\n"])),
        min_size=1,
        max_size=40,
    )
)
def test_plain_text_loses_nothing(tmp_path_factory: pytest.TempPathFactory, words: list[tuple[int, str]]):
    path = tmp_path_factory.mktemp("plain") / "own.txt"
    text = "".join(chr(97 + number % 26) * size + gap for number, (size, gap) in enumerate(words))
    path.write_bytes(text.encode())
    samples = read_samples(path)
    assert "".join("".join(sample.text.split()) for sample in samples) == "".join(text.split())
    assert all(0 < len(sample.text) <= 900 for sample in samples)


def test_a_long_paragraph_is_cut_behind_sentences_and_else_between_words(tmp_path: Path):
    path = tmp_path / "own.txt"
    sentence = " ".join(["word"] * 80) + "."
    path.write_text(" ".join([sentence] * 5))
    assert read_samples(path) == [TextSample(f"{sentence} {sentence}")] * 2 + [TextSample(sentence)]
    words = [f"word{number}" for number in range(1000)]
    path.write_text(" ".join(words))
    samples = read_samples(path)
    assert len(samples) > 1 and [word for sample in samples for word in sample.text.split()] == words


@pytest.mark.parametrize(
    ("source", "message"),
    [("missing.jsonl", "no such data file"), ("datasets:wikitext", "expected datasets:NAME:SPLIT")],
)
def test_a_source_that_is_not_there(source: str, message: str):
    with pytest.raises(InputError, match=message):
        read_samples(source)


def test_what_is_no_file_is_named_as_what_it_is(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("pipe", "a pipe or a device: save what it gives"),
        ("", "a directory: name a file"),
    ):
        with pytest.raises(InputError, match=message):
            read_samples(tmp_path / name)


def test_a_suffix_says_what_a_file_holds_in_any_case(tmp_path: Path):
    for name in ("own.JSONL", "own.ndjson"):
        (tmp_path / name).write_text(_GOOD)
        assert read_samples(tmp_path / name) == [TextSample("fine")]
    (tmp_path / "own.json").write_text(_GOOD)
    with pytest.raises(InputError, match=r"put one record a line into a \.jsonl file"):
        read_samples(tmp_path / "own.json")


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "own.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no samples"):
        read_samples(tmp_path / "own.jsonl")


class Library(ModuleType):
    """Stands for the `datasets` library; remembers what it was asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__("datasets")
        self.__spec__ = ModuleSpec("datasets", None)
        self._rows, self.asked = rows, ()

    def load_dataset(self, *names: str, split: str) -> list[dict[str, Any]]:
        self.asked = (*names, split)
        return self._rows


@pytest.mark.parametrize("name", ["wikitext:test", "wikitext:wikitext-2-raw-v1:test"])
def test_a_data_set_of_the_library_may_have_blank_texts(name: str, monkeypatch: pytest.MonkeyPatch):
    library = Library([{"text": ""}, {"text": "one"}, {"text": " \n"}, {"text": "two"}])
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert read_samples(f"datasets:{name}") == [TextSample("one"), TextSample("two")]
    assert library.asked == tuple(name.split(":"))


@pytest.mark.parametrize("row", [{"text": 7}, {"text": None}, {"document": "one"}, {"text": ["one"]}])
def test_another_bad_row_of_the_library_is_named(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", Library([{"text": "one"}, {"text": ""}, row]))
    with pytest.raises(InputError, match=r"datasets:own:test, row 3: 'text' is missing or empty"):
        read_samples("datasets:own:test")
