"""How good the embedded model is on unseen text, beside a model without context and beside guessing."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch.nn import functional as F
from transformers import AutoTokenizer, Llama4ForCausalLM, PreTrainedTokenizerBase

from llama4_pipeline.data.corpus import KINDS, Splits, documents
from llama4_pipeline.data.tasks import Example, held_out_examples
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.sparse_experts import sparse_experts

_WINDOWS = (512, 2048)
_LONGEST_KIND = 6  # tokens
_LONGEST_SUMMARY = 12


@dataclass(frozen=True)
class ReferenceQuality:
    """Figures on held-out text.

    Attributes:
        perplexity: By window length in tokens; every token of a window but the first is predicted.
        unigram_perplexity: Of a model that knows only how often each token occurs in the training text, on
            the tokens predicted in the shorter windows.
        validation_tokens: Tokens predicted in the shorter windows.
        accuracy: Share of sections whose kind is right, greedily decoded.
        chance_accuracy: Of guessing.
        rouge_l: Mean ROUGE-L F-measure of greedily decoded titles.
        chance_rouge_l: Of other sections' titles, each kind as often.
        classify_examples, summarise_examples: Examples measured.
        expert_load: Share of the validation tokens that each expert takes, by MoE layer.
    """

    perplexity: dict[int, float]
    unigram_perplexity: float
    validation_tokens: int
    accuracy: float
    chance_accuracy: float
    rouge_l: float
    chance_rouge_l: float
    classify_examples: int
    summarise_examples: int
    expert_load: dict[int, tuple[float, ...]]


def measure_quality(directory: Path, splits: Splits, examples: int, tokens: int) -> ReferenceQuality:
    """Measures the model of a Hugging Face directory, computed by transformers as it is.

    Args:
        directory: With the model and its tokenizer.
        splits: The parts of the corpus; the training part gives the unigram model's counts.
        examples: Held-out examples of each task at most.
        tokens: Of validation text at most.
    """
    model = Llama4ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    validation = _stream(tokenizer, documents(splits.validation))[:tokens]
    classify, summarise = held_out_examples(splits, examples)
    with torch.inference_mode():
        titles = [_greedy_line(model, tokenizer, example.prompt, _LONGEST_SUMMARY) for example in summarise]
        return ReferenceQuality(
            perplexity={window: _perplexity(model, validation, window) for window in _WINDOWS},
            unigram_perplexity=_unigram_perplexity(
                _stream(tokenizer, documents(splits.train)), validation, model
            ),
            validation_tokens=_windows(validation, _WINDOWS[0])[:, 1:].numel(),
            accuracy=_accuracy(model, tokenizer, classify),
            chance_accuracy=1 / len(KINDS),
            rouge_l=_rouge_l(titles, [example.answer for example in summarise]),
            chance_rouge_l=_chance_rouge_l([example.answer for example in summarise]),
            classify_examples=len(classify),
            summarise_examples=len(summarise),
            expert_load=_expert_load(model, validation),
        )


def _stream(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    rows = tokenizer(texts, verbose=False).input_ids
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])


def _windows(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Whole windows of a stream of tokens, [windows, window]; a stream shorter than that is one window."""
    window = min(window, len(tokens))
    return tokens[: len(tokens) // window * window].view(-1, window)


def _perplexity(model: Llama4ForCausalLM, tokens: torch.Tensor, window: int) -> float:
    total, predicted = 0.0, 0
    for row in _windows(tokens, window):
        logits = model(row[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits, row[1:], reduction="sum").item()
        predicted += len(row) - 1
    return math.exp(total / predicted)


def _unigram_perplexity(train: torch.Tensor, tokens: torch.Tensor, model: Llama4ForCausalLM) -> float:
    counts = torch.bincount(train, minlength=model.config.vocab_size) + 1.0
    log_shares = (counts / counts.sum()).log()
    return math.exp(-log_shares[_windows(tokens, _WINDOWS[0])[:, 1:]].mean().item())


def _accuracy(model: Llama4ForCausalLM, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """Share of answers decoded whole: a kind may take several tokens."""
    hits = sum(_greedy_line(model, tokenizer, each.prompt, _LONGEST_KIND) == each.answer for each in examples)
    return hits / len(examples)


def _greedy_line(
    model: Llama4ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, longest: int
) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    answer = str(tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return answer.strip().partition("\n")[0]


def _rouge_l(answers: list[str], references: list[str]) -> float:
    scorer = RougeScorer(["rougeL"])
    scores = [
        scorer.score(reference, answer)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]
    return sum(scores) / len(scores)


def _chance_rouge_l(titles: list[str]) -> float:
    """Of titles against the next ones: as kinds take turns, one of them is of the same kind, as in guessing."""
    shifts = range(1, len(KINDS) + 1)
    return sum(_rouge_l(titles[shift:] + titles[:shift], titles) for shift in shifts) / len(shifts)


def _expert_load(model: Llama4ForCausalLM, tokens: torch.Tensor) -> dict[int, tuple[float, ...]]:
    """By MoE layer, the share of the tokens that the router sends to each expert."""
    architecture = Architecture.from_config(model.config)
    with sparse_experts(model) as router_logits:
        for row in _windows(tokens, _WINDOWS[0]):
            model(row[None], use_cache=False)
    moe_layers = [layer.index for layer in architecture.layers if layer.experts]
    loads = {}
    for place, index in enumerate(moe_layers):
        logits = torch.cat(router_logits[place :: len(moe_layers)])
        chosen = logits.topk(architecture.experts_per_token, dim=-1).indices.flatten()
        share = chosen.bincount(minlength=logits.shape[-1]) / chosen.numel()
        loads[index] = tuple(round(value, 4) for value in share.tolist())
    return loads
