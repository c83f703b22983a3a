"""Two small tasks made from the corpus: title a section from its text, and say which kind it is of.

Both are plain text that any tokenizer reads, and both are answered by a few greedily decoded tokens: the
answer follows the prompt after one space and fills its line.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

from llama4_pipeline.data.corpus import KINDS, Section, Shingle, Splits, repeats, shingles

_PASSAGE_CHARACTERS = 300
_SHORTEST_PIECE = 60
_LONG_KINDS = ("topic", "module")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Example:
    """A prompt about a passage, and its answer; `choices` is empty where the answer is free text."""

    passage: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def summarise_examples(sections: Iterable[Section]) -> list[Example]:
    """Passages of a section's text, answered by its headline: its kind, then its title in plain words."""
    return [
        Example(passage, f"Text:\n{passage}\n\nTitle:", f"{section.kind} {plain_words(section.title)}")
        for section, passage in _passages(sections)
    ]


def classify_examples(sections: Iterable[Section]) -> list[Example]:
    """Title and text of each section, answered by its kind."""
    return [
        Example(passage, f"Text:\n{passage}\n\nKind of {section.title}:", section.kind, KINDS)
        for section, passage in _passages(sections)
    ]


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many of the items, at equal distances."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def balanced(examples: Sequence[Example], per_answer: int) -> list[Example]:
    """The same number of examples of each kind, evenly spread; those of a rare kind come again."""
    chosen = []
    for kind in KINDS:
        own = [example for example in examples if _kind(example) == kind]
        chosen.append(list(islice(cycle(evenly(own, per_answer)), per_answer)))
    return [example for group in zip(*chosen, strict=True) for example in group]


def held_out_examples(splits: Splits, most: int) -> tuple[list[Example], list[Example]]:
    """Examples on passages that no model has read, evenly drawn: (classify, summarise).

    The two tasks ask about different passages, from different sources.

    Args:
        splits: The parts of the corpus.
        most: Examples of each task at most.
    """
    read = " ".join(word for section in splits.train for word in section.text.split())
    known = shingles(*(section.text for section in (*splits.train, *splits.validation)))
    first, second = _dealt(splits.tasks)
    classify = _unread(classify_examples(first), read, known)
    known |= shingles(*(example.passage for example in classify))
    summarise = _unread(summarise_examples(second), read, known)
    rarest = min(min(Counter(map(_kind, examples)).values()) for examples in (classify, summarise))
    per_kind = min(rarest, most // len(KINDS))
    return balanced(classify, per_kind), balanced(summarise, per_kind)


def _dealt(sections: Sequence[Section]) -> tuple[list[Section], list[Section]]:
    """Deals whole sources into two groups, the richest first, each to the group that needs it more.

    What a source brings most of, as a share of all passages of that kind, says who needs it.
    """
    brings: dict[str, Counter[str]] = defaultdict(Counter)
    for section, _ in _passages(sections):
        brings[section.source][section.kind] += 1
    total = sum(brings.values(), Counter[str]())
    most = {source: max((own[kind] / total[kind], kind) for kind in own) for source, own in brings.items()}
    sources: tuple[set[str], set[str]] = (set(), set())
    has = (Counter[str](), Counter[str]())
    for source in sorted(brings, key=lambda source: (most[source], source), reverse=True):
        _, kind = most[source]
        poorer = int(has[1][kind] < has[0][kind])
        sources[poorer].add(source)
        has[poorer].update(brings[source])
    first, second = ([each for each in sections if each.source in group] for group in sources)
    return first, second


def _passages(sections: Iterable[Section]) -> Iterator[tuple[Section, str]]:
    """The beginning of each section; sections of the rare, long kinds give each of their passages."""
    for section in sections:
        most = None if section.kind in _LONG_KINDS else 1
        for passage in islice(pieces(section.text, _PASSAGE_CHARACTERS), most):
            yield section, passage


def _kind(example: Example) -> str:
    return example.answer.split()[0]


def pieces(text: str, characters: int) -> Iterator[str]:
    """Cuts a text at blank lines into pieces of at most so many characters; a longer paragraph is cut short.

    What is left at the end is dropped when it is too short to say anything, unless it is all there is.
    """
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) + 2 > characters:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph[:characters]
    if len(piece) >= _SHORTEST_PIECE or (piece and piece == text):
        yield piece


def plain_words(title: str) -> str:
    """The words of a title: 'JSONDecoder' is 'json decoder', 'get_data' is 'get data'."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_.\W]+", " ", title)
    return " ".join(spaced.lower().split()) or title


def _unread(examples: Iterable[Example], read: str, known: Set[Shingle]) -> list[Example]:
    """Those whose passage neither stands in the text that was read nor repeats what is known."""
    return [
        example
        for example in examples
        if " ".join(example.passage.split()) not in read and not repeats(shingles(example.passage), known)
    ]
