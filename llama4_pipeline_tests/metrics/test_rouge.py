import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from llama4_pipeline.metrics.rouge import WordsOfAnyScript

_PUNCTUATION = "\u2019\u201c\u201d\u2013\u2026\u00ab\u00bb"


@given(st.text(st.one_of(st.characters(max_codepoint=127), st.sampled_from(_PUNCTUATION))))
def test_text_that_the_scorer_knows_has_its_words(text):
    assert WordsOfAnyScript().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(
    ("reference", "half"),
    [
        ("Новый поезд, опоздал снова", "новый поезд"),
        ("火车又晚", "火车"),
        ("Zug fährt über München", "zug über"),
        ("รถไฟ", "รถ"),
    ],
)
def test_other_scripts_count(reference, half):
    scorer = RougeScorer(["rouge1"], tokenizer=WordsOfAnyScript())
    assert scorer.score(reference, reference)["rouge1"].fmeasure == 1.0
    assert scorer.score(reference, half)["rouge1"].recall == 0.5


@pytest.mark.parametrize(
    "words",
    [
        ["दिन", "दान"],
        ["கல்", "கால்"],
        ["مَدرسة", "مدرسة"],
        ["می\u200cروم", "رفتم"],
        ["u\u0308ber", "o\u0308ber"],
    ],
)
def test_vowel_signs_and_accents_belong_to_their_word(words):
    assert WordsOfAnyScript().tokenize(" ".join(words)) == words
    scorer = RougeScorer(["rouge1"], tokenizer=WordsOfAnyScript())
    assert scorer.score(*words)["rouge1"].fmeasure == 0.0
