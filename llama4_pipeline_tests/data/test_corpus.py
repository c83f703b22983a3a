"""The corpus is fixed, and its three parts have nothing in common."""

from llama4_pipeline.data.corpus import KINDS, Section, Splits, read_corpus, shingles, split_corpus


def test_the_corpus_is_the_same_each_time():
    first = read_corpus()
    read_corpus.cache_clear()
    assert read_corpus() == first


def test_no_text_stands_in_the_corpus_twice():
    contents = [" ".join(section.text.split()) for section in read_corpus()]
    assert len(contents) == len(set(contents))


def test_each_part_has_every_kind_and_the_training_part_is_the_largest(splits: Splits):
    for part in (splits.train, splits.validation, splits.tasks):
        assert {section.kind for section in part} == set(KINDS)
    assert len(splits.train) > 2 * (len(splits.validation) + len(splits.tasks))


def test_held_out_sections_share_no_source_and_hardly_a_passage_with_the_others(splits: Splits):
    sources = [
        {section.source for section in part} for part in (splits.train, splits.validation, splits.tasks)
    ]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]
    known = shingles(*(section.text for section in (*splits.train, *splits.validation)))
    for section in splits.tasks:
        own = shingles(section.text)
        assert len(own & known) <= 0.25 * len(own), section.title


def test_a_repeated_text_under_another_source_is_not_held_out():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    sections = [Section(f"package/module{index}.py", "title", "module", words) for index in range(200)]
    splits = split_corpus(sections)
    assert splits.train and not splits.validation and not splits.tasks
