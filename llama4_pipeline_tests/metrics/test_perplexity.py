import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.metrics.perplexity import Perplexity, measure_perplexity, windows
from llama4_pipeline.runtime.engines import open_decoder

_DOCUMENT = np.random.default_rng(1).integers(3, 131, size=200)


def _transformers_loop(model, document, context, stride):
    """The loop of the Hugging Face perplexity guide, with transformers alone."""
    ids = torch.from_numpy(document)[None]
    total, count, scored_until = 0.0, 0, 0
    for start in range(0, ids.shape[1], stride):
        stop = min(start + context, ids.shape[1])
        labels = ids[:, start:stop].clone()
        labels[:, : -(stop - scored_until)] = -100
        with torch.no_grad():
            loss = model(ids[:, start:stop], labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())
        total, count, scored_until = total + loss.item() * scored, count + scored, stop
        if stop == ids.shape[1]:
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(("context", "stride"), [(128, 64), (40, 13), (17, 16), (100, 1 + 50)])
def test_equals_a_plain_transformers_loop(model, decoder, context, stride):
    measured = measure_perplexity(decoder, [_DOCUMENT], context=context, stride=stride)
    value, tokens = _transformers_loop(model, _DOCUMENT, context, stride)
    assert measured.value == pytest.approx(value, rel=1e-5)
    assert measured.tokens == tokens == len(_DOCUMENT) - 1


@pytest.mark.parametrize(("context", "stride"), [(128, 64), (200, 100), (40, 13)])
def test_the_pytorch_engine_gives_the_perplexity_of_transformers(
    tiny_random_checkpoint, model, context, stride
):
    pytorch = open_decoder("pytorch", checkpoint=tiny_random_checkpoint)
    measured = measure_perplexity(pytorch, [_DOCUMENT], context=context, stride=stride)
    value, tokens = _transformers_loop(model, _DOCUMENT, context, stride)
    assert measured.value == pytest.approx(value, rel=1e-5)
    assert measured.tokens == tokens


def test_documents_are_pooled_by_token_and_do_not_see_each_other(decoder):
    first, second = _DOCUMENT[:30], _DOCUMENT[30:120]
    alone = [measure_perplexity(decoder, [document]) for document in (first, second)]
    together = measure_perplexity(decoder, [first, _DOCUMENT[:1], second])
    expected = sum(math.log(each.value) * each.tokens for each in alone) / 118
    assert together.tokens == 118
    assert math.log(together.value) == pytest.approx(expected, rel=1e-6)


def test_standard_error_is_that_of_the_mean_loss_carried_to_the_perplexity():
    losses = np.random.default_rng(0).exponential(2.0, size=10_000)
    measured = Perplexity.from_losses(losses)
    assert measured.stderr == pytest.approx(math.exp(losses.mean()) * losses.std(ddof=1) / 100)


@given(tokens=st.integers(0, 300), context=st.integers(2, 64), data=st.data())
def test_windows_score_every_token_but_the_first_exactly_once(tokens, context, data):
    stride = data.draw(st.integers(1, context - 1))
    scored = []
    for window in windows(tokens, context, stride):
        assert 0 < window.stop - window.start <= context
        assert 1 <= window.scored < window.stop - window.start
        scored += range(window.stop - window.scored, window.stop)
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [
        (129, None, "context 129 does not fit"),
        (1, None, "context 1"),
        (64, 64, "stride 64"),
        (64, 0, "stride 0"),
    ],
)
def test_windows_that_do_not_fit_are_refused(decoder, context, stride, message):
    with pytest.raises(InputError, match=message):
        measure_perplexity(decoder, [_DOCUMENT], context=context, stride=stride)


@pytest.mark.parametrize("at", [0, 3, -1], ids=["first", "within", "last"])
def test_a_token_of_another_vocabulary_is_refused_wherever_it_stands(decoder, at):
    document = _DOCUMENT.copy()
    document[at] = decoder.vocab_size
    with pytest.raises(InputError, match=r"token id 131, outside the vocabulary of transformers, 0 to 130"):
        measure_perplexity(decoder, [document])


def test_a_text_of_one_token_is_refused(decoder):
    with pytest.raises(InputError, match="two tokens"):
        measure_perplexity(decoder, [_DOCUMENT[:1]])


def test_a_loss_beyond_every_perplexity_is_infinite():
    assert Perplexity.from_losses(np.array([800.0, 900.0])).value == math.inf


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_a_failure(decoder, number):
    class Broken:
        engine, max_context, vocab_size = "broken", decoder.max_context, decoder.vocab_size
        reset = decoder.reset

        def forward(self, *arguments, **options):
            logits = decoder.forward(*arguments, **options).copy()
            logits[0, -1, 5] = number
            return logits

    with pytest.raises(CheckFailed, match="logits of broken hold NaN"):
        measure_perplexity(Broken(), [_DOCUMENT])
