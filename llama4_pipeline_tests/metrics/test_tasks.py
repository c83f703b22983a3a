from itertools import takewhile

import pytest
import torch

from llama4_pipeline.data.samples import ClassifySample, SummariseSample
from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.tasks import (
    Score,
    classification_accuracy,
    greedy_continuations,
    predicted_choice,
    summary_rouge,
)

_PROMPTS = [
    " ".join(f"w{60 + (start * 7 + step) % 71}" for step in range(start)) for start in (5, 30, 12, 1, 20)
]


def test_batches_continue_each_prompt_as_transformers_does_alone(model, decoder, tokenizer):
    texts = greedy_continuations(decoder, tokenizer, _PROMPTS, max_new_tokens=8, batch_size=2)
    for prompt, text in zip(_PROMPTS, texts, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        new = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_a_continuation_ends_before_its_stop_token(decoder, tokenizer):
    texts = greedy_continuations(decoder, tokenizer, _PROMPTS, max_new_tokens=8)
    stop = texts[0].split()[4]
    [stop_token] = tokenizer(stop)["input_ids"]
    stopped = greedy_continuations(decoder, tokenizer, _PROMPTS, max_new_tokens=8, stop_tokens=[stop_token])
    assert stopped == [" ".join(takewhile(lambda word: word != stop, text.split())) for text in texts]


def test_accuracy_counts_the_continuations_that_begin_with_the_answer(decoder, tokenizer):
    firsts = [
        text.split()[0] for text in greedy_continuations(decoder, tokenizer, _PROMPTS, max_new_tokens=3)
    ]
    wrong = "w60" if firsts[0] != "w60" else "w61"
    samples = [
        ClassifySample(prompt, (first, wrong), first) for prompt, first in zip(_PROMPTS, firsts, strict=True)
    ]
    assert classification_accuracy(decoder, tokenizer, samples) == Score(1.0, 0.0, 5)
    samples[0] = ClassifySample(_PROMPTS[0], (firsts[0], wrong), wrong)
    accuracy = classification_accuracy(decoder, tokenizer, samples)
    assert (accuracy.mean, accuracy.samples) == (0.8, 5)
    assert accuracy.stderr == pytest.approx(0.2)


def test_rouge_is_one_for_the_models_own_words_and_none_for_others(decoder, tokenizer):
    texts = greedy_continuations(decoder, tokenizer, _PROMPTS, max_new_tokens=6)
    own = [SummariseSample(prompt, text) for prompt, text in zip(_PROMPTS, texts, strict=True)]
    scores = summary_rouge(decoder, tokenizer, own, max_new_tokens=6)
    assert {name: score.mean for name, score in scores.items()} == {
        "rouge1": 1.0,
        "rouge2": 1.0,
        "rougeL": 1.0,
    }
    other = [SummariseSample(prompt, "nothing alike") for prompt in _PROMPTS]
    assert all(
        score.mean == 0.0 for score in summary_rouge(decoder, tokenizer, other, max_new_tokens=6).values()
    )


@pytest.mark.parametrize(
    ("text", "choice"),
    [(" Class\nrest", "class"), ("class method", "class method"), ("", None), ("a class", None)],
)
def test_the_longest_choice_that_begins_the_text_is_meant(text, choice):
    assert predicted_choice(text, ("class", "class method", "module")) == choice


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        (" Because", ("A", "B"), None),
        (" nothing", ("no", "yes"), None),
        (" No, thanks", ("no", "yes"), "no"),
        ("10", ("1", "2"), None),
        ("C++ it is", ("C", "C++"), "C++"),
        ("是的", ("是", "不"), "是"),
    ],
)
def test_a_choice_is_said_in_words_of_its_own(text, choices, choice):
    assert predicted_choice(text, choices) == choice


def test_a_prompt_that_does_not_fit_is_named(decoder, tokenizer):
    with pytest.raises(InputError, match="task prompt 2 has 125 tokens"):
        greedy_continuations(decoder, tokenizer, ["w60", "w61 " * 125], max_new_tokens=4)
