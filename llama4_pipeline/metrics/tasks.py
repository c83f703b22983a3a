"""Task scores: ROUGE of generated summaries and accuracy of generated classes, by greedy decoding.

An engine that has lost quality shows it here in words, where perplexity shows it in nats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from llama4_pipeline.data.samples import ClassifySample, Sample, SummariseSample
from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.perplexity import standard_error
from llama4_pipeline.metrics.rouge import WordsOfAnyScript, word_spans
from llama4_pipeline.progress import Progress
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.generate import FINISHED, generate, pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUGE = ("rouge1", "rouge2", "rougeL")
_SUMMARY_TOKENS = 48


@dataclass(frozen=True)
class Score:
    """A mean over samples with its standard error."""

    mean: float
    stderr: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Score":
        values = np.asarray(samples, dtype=np.float64)
        return cls(float(values.mean()), standard_error(values), values.size)


def classification_accuracy(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[ClassifySample],
    *,
    stop_tokens: Sequence[int] = (),
) -> Score:
    """Share of samples whose greedy continuation begins with the right choice (letter case and blanks aside).

    The longest choice that the continuation begins with is the prediction; none of them is a wrong answer.
    """
    prompts = [sample.prompt for sample in samples]
    texts = greedy_continuations(
        decoder,
        tokenizer,
        prompts,
        max_new_tokens=_choice_tokens(tokenizer, samples),
        stop_tokens=stop_tokens,
    )
    return Score.of(
        [
            float(predicted_choice(text, sample.choices) == sample.answer)
            for text, sample in zip(texts, samples, strict=True)
        ]
    )


def summary_rouge(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[SummariseSample],
    *,
    max_new_tokens: int = _SUMMARY_TOKENS,
    stop_tokens: Sequence[int] = (),
) -> dict[str, Score]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measure (0 to 1, stemmed) of greedy summaries, by the scorer's names.

    Where the reference is one line, only the first line of the summary counts: a title ends with its line.
    """
    prompts = [sample.prompt for sample in samples]
    texts = greedy_continuations(
        decoder,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
    )
    scorer = RougeScorer(_ROUGE, tokenizer=WordsOfAnyScript())
    scores = [
        scorer.score(sample.reference, _comparable(text, sample.reference))
        for sample, text in zip(samples, texts, strict=True)
    ]
    return {name: Score.of([score[name].fmeasure for score in scores]) for name in _ROUGE}


def require_room(tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample], max_context: int) -> None:
    """Refuses task prompts that a context has no room for, before any work on them.

    Args:
        tokenizer: of the model.
        samples: of any kind; running text is cut where it is read.
        max_context: tokens of prompt and answer.

    Raises:
        InputError: a prompt and its answer do not fit.
    """
    summaries = [sample for sample in samples if isinstance(sample, SummariseSample)]
    classifications = [sample for sample in samples if isinstance(sample, ClassifySample)]
    _encoded(tokenizer, [sample.prompt for sample in summaries], _SUMMARY_TOKENS, max_context)
    if classifications:
        new_tokens = _choice_tokens(tokenizer, classifications)
        _encoded(tokenizer, [sample.prompt for sample in classifications], new_tokens, max_context)


def predicted_choice(text: str, choices: Sequence[str]) -> str | None:
    """The longest of the choices that a generated text begins with, as words of their own, or None."""
    said = text.strip().casefold()
    inside = {place for start, end in word_spans(said) for place in range(start + 1, end)}
    fitting = [
        choice
        for choice in choices
        if said.startswith(begin := choice.strip().casefold()) and len(begin) not in inside
    ]
    return max(fitting, key=len, default=None)


def greedy_continuations(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    batch_size: int = 8,
) -> list[str]:
    """Continues prompts greedily, in left-padded batches of similar length, up to a token that ends a text.

    Args:
        decoder: the engine; its cache is emptied.
        tokenizer: of the model.
        prompts: texts of at least one token.
        max_new_tokens: of each prompt at most.
        stop_tokens: what ends a text beside the tokenizer's end-of-text token.
        batch_size: rows at once.

    Returns:
        The new text of each prompt, in the order of the prompts.

    Raises:
        InputError: a prompt and its continuation do not fit the decoder.
    """
    encoded = _encoded(tokenizer, prompts, max_new_tokens, decoder.max_context)
    if tokenizer.eos_token_id is not None:
        stop_tokens = (*stop_tokens, tokenizer.eos_token_id)
    continued: list[list[int]] = [[]] * len(prompts)
    with Progress("tasks", total=len(prompts), unit="prompts") as progress:
        for rows in _batches_of_similar_length(encoded, batch_size):
            input_ids, attention_mask = pad_left([encoded[row] for row in rows])
            decoder.reset()
            steps = generate(
                decoder, input_ids, attention_mask, max_new_tokens=max_new_tokens, stop_tokens=stop_tokens
            )
            for row, new_tokens in zip(rows, np.stack(list(steps), axis=1).tolist(), strict=True):
                continued[row] = _before_stop(new_tokens, stop_tokens)
            progress.advance(len(rows))
    return tokenizer.batch_decode(continued, skip_special_tokens=True)


def _choice_tokens(tokenizer: "PreTrainedTokenizerBase", samples: Sequence[ClassifySample]) -> int:
    """Of the longest choice, and what shows that it has ended."""
    choices = (choice for sample in samples for choice in sample.choices)
    return 2 + max(len(tokenizer(" " + choice, add_special_tokens=False)["input_ids"]) for choice in choices)


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], new_tokens: int, max_context: int
) -> list[list[int]]:
    encoded: list[list[int]] = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    for number, tokens in enumerate(encoded, start=1):
        if len(tokens) + new_tokens > max_context:
            raise InputError(
                f"task prompt {number} has {len(tokens)} tokens; with {new_tokens} new ones it does not fit a "
                f"context of {max_context}: shorten it, or give the graph, or the model in the catalog, a longer one"
            )
    return encoded


def _comparable(text: str, reference: str) -> str:
    return text if "\n" in reference.strip() else text.strip().partition("\n")[0]


def _batches_of_similar_length(encoded: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    by_length = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    for start in range(0, len(by_length), batch_size):
        yield by_length[start : start + batch_size]


def _before_stop(new_tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    ends = (place for place, token in enumerate(new_tokens) if token == FINISHED or token in stop_tokens)
    return new_tokens[: next(ends, len(new_tokens))]
