"""Task examples: balanced, answered in their line, cut at blank lines."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.data.corpus import KINDS, Section, Splits, read_corpus, repeats, shingles
from llama4_pipeline.data.tasks import (
    Example,
    balanced,
    classify_examples,
    held_out_examples,
    pieces,
    plain_words,
    summarise_examples,
)

_SECTION = Section("json/decoder.py", "JSONDecoder", "class", "Simple JSON decoder.\n\nIt reads a document.")


def test_a_summary_is_kind_and_title_in_plain_words():
    (example,) = summarise_examples([_SECTION])
    assert example.answer == "class json decoder" and not example.choices
    assert example.prompt == f"Text:\n{_SECTION.text}\n\nTitle:"


def test_a_class_is_the_kind_of_the_section():
    (example,) = classify_examples([_SECTION])
    assert (example.answer, example.choices) == ("class", KINDS)
    assert example.prompt == f"Text:\n{_SECTION.text}\n\nKind of JSONDecoder:"


@pytest.mark.parametrize(
    ("title", "words"),
    [("get_data", "get data"), ("HTTPServer", "http server"), ('The "with" statement', "the with statement")],
)
def test_plain_words(title: str, words: str):
    assert plain_words(title) == words


def test_a_rare_kind_is_repeated_and_a_common_one_thinned():
    examples = classify_examples(read_corpus())
    assert set(Counter(example.answer for example in balanced(examples, 300)).values()) == {300}


@pytest.mark.parametrize("count", [1, 3, 50, 74, 75, 76, 200])
def test_examples_are_drawn_from_all_of_a_kind(count: int):
    own = [Example(str(place), "", kind) for kind in KINDS for place in range(75)]
    drawn = [int(example.passage) for example in balanced(own, count) if example.answer == KINDS[0]]
    assert len(drawn) == count
    distances = {later - earlier for earlier, later in pairwise([*drawn[:75], 75])}
    assert max(distances) - min(distances) <= 1


def test_held_out_examples_are_balanced_and_at_most_as_many_as_asked(splits: Splits):
    classify, summarise = held_out_examples(splits, 80)
    assert set(Counter(example.answer for example in classify).values()) == {20}
    assert len(summarise) == 80


def test_the_two_tasks_hold_out_different_passages_and_enough_of_them(splits: Splits):
    classify, summarise = held_out_examples(splits, 200)
    assert len(classify) == len(summarise) == 200
    asked = shingles(*(example.passage for example in classify))
    for example in summarise:
        assert not repeats(shingles(example.passage), asked), example.passage


@given(st.lists(st.text("ab \n", min_size=1, max_size=60), max_size=12), st.integers(30, 200))
def test_pieces_are_in_the_text_and_within_the_limit(paragraphs: list[str], characters: int):
    text = "\n\n".join(paragraphs)
    for piece in pieces(text, characters):
        assert piece in text and len(piece) <= characters
