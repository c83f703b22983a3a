import math

import numpy as np
import pytest
import torch

from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.divergence import measure_divergence
from llama4_pipeline.metrics.perplexity import measure_perplexity

_DOCUMENTS = [np.random.default_rng(2).integers(3, 131, size=size) for size in (150, 20)]


class _Recorder:
    """Keeps the logits a decoder gave, for another way of computing the same figure."""

    def __init__(self, decoder):
        self._decoder, self.logits = decoder, []

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def forward(self, *arguments, **keywords):
        logits = self._decoder.forward(*arguments, **keywords)
        self.logits.extend(logits)
        return logits


def test_equals_the_divergence_that_torch_computes(decoder, disturbed):
    engine, reference = _Recorder(disturbed), _Recorder(decoder)
    measured = measure_divergence(engine, reference, _DOCUMENTS)
    ours, theirs = (torch.from_numpy(np.concatenate(each.logits)).double() for each in (engine, reference))
    expected = torch.nn.functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert measured.tokens == 168
    assert measured.mean == pytest.approx(expected.mean().item())
    assert measured.p99 == pytest.approx(expected.quantile(0.99).item())
    assert measured.maximum == pytest.approx(expected.max().item())
    assert measured.stderr == pytest.approx(expected.std().item() / 168**0.5)
    assert measured.top1_agreement == (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert 0 < measured.top1_agreement < 1


def test_standard_errors_are_those_of_the_paired_tokens(decoder, disturbed):
    engine, reference = _Recorder(disturbed), _Recorder(decoder)
    measured = measure_divergence(engine, reference, _DOCUMENTS)
    ours, theirs = (torch.from_numpy(np.concatenate(each.logits)).double() for each in (engine, reference))
    targets = torch.from_numpy(np.concatenate([document[1:] for document in _DOCUMENTS]))
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    differences = loss(ours, targets) - loss(theirs, targets)
    ratio = differences.mean().exp().item()
    assert measured.perplexity_ratio == pytest.approx(ratio)
    assert measured.perplexity_ratio_stderr == pytest.approx(ratio * differences.std().item() / 168**0.5)
    share = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert measured.top1_stderr == pytest.approx((share * (1 - share) / 167) ** 0.5)


def test_an_engine_does_not_diverge_from_itself(model, decoder):
    measured = measure_divergence(decoder, type(decoder)(model), _DOCUMENTS)
    assert measured.mean == measured.maximum == 0.0
    assert measured.top1_agreement == measured.perplexity_ratio == 1.0


def test_perplexities_on_the_way_are_those_measured_alone(decoder, disturbed):
    measured = measure_divergence(disturbed, decoder, _DOCUMENTS, context=64, stride=20)
    alone = measure_perplexity(decoder, _DOCUMENTS, context=64, stride=20)
    assert measured.reference_perplexity == alone
    assert measured.perplexity_ratio == pytest.approx(measured.perplexity.value / alone.value)
    assert measured.perplexity_ratio_stderr < measured.perplexity.stderr / alone.value


def test_another_vocabulary_is_refused(decoder, disturbed):
    disturbed.vocab_size = 132
    with pytest.raises(InputError, match="vocabularies differ"):
        measure_divergence(disturbed, decoder, _DOCUMENTS)


class _Altered:
    """Says what a decoder does, with its logits altered."""

    def __init__(self, decoder, alter):
        self._decoder, self._alter = decoder, alter

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def forward(self, *arguments, **keywords):
        return self._alter(self._decoder.forward(*arguments, **keywords))


def _without_token_7(logits):
    return np.where(np.arange(logits.shape[-1]) == 7, np.float32(-np.inf), logits)


def test_a_token_that_cannot_come_adds_nothing_to_the_divergence(decoder, disturbed):
    documents = [document[document != 7] for document in _DOCUMENTS]
    ruled_out = measure_divergence(
        _Altered(disturbed, _without_token_7), _Altered(decoder, _without_token_7), documents
    )
    nearly = measure_divergence(
        _Altered(disturbed, lambda logits: _without_token_7(logits).clip(min=-1000)),
        _Altered(decoder, lambda logits: _without_token_7(logits).clip(min=-1000)),
        documents,
    )
    assert ruled_out.mean == pytest.approx(nearly.mean)
    assert ruled_out.maximum == pytest.approx(nearly.maximum)


def test_a_loss_beyond_every_perplexity_makes_an_infinite_ratio(decoder, disturbed):
    measured = measure_divergence(_Altered(disturbed, lambda logits: 1e4 * logits), decoder, _DOCUMENTS)
    assert measured.perplexity.value == measured.perplexity_ratio == math.inf
    assert 1000 < measured.mean < math.inf
