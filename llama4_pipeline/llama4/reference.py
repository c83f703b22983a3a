"""Trains the embedded model: a small but complete Llama 4, on text that every Python brings.

The number of steps is fixed, not the time, so the same seed gives the same bytes on the same machine.
"""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, Llama4ForCausalLM, Llama4TextConfig, PreTrainedTokenizerFast

from llama4_pipeline.data.corpus import Section, documents, read_corpus, split_corpus
from llama4_pipeline.data.tasks import Example, balanced, classify_examples, summarise_examples
from llama4_pipeline.data.tokenizer import train_tokenizer
from llama4_pipeline.llama4.muon import Muon
from llama4_pipeline.llama4.reference_quality import ReferenceQuality, measure_quality
from llama4_pipeline.llama4.sparse_experts import balance_loss, sparse_experts
from llama4_pipeline.progress import Progress

_IGNORED = -100
_THREADS = 2


@dataclass(frozen=True)
class TrainingPlan:
    """How the embedded model is trained; each step sees rows of running text and rows of task examples.

    Attributes:
        steps: Updates of the weights.
        text_tokens: Tokens of running text a step: rows of `row_tokens`, in every fourth step one long row.
        row_tokens: Length of a row; longer than an attention chunk, so that training crosses its border.
        task_tokens: Tokens of task examples a step, padding included.
        examples_per_kind: Examples of each task and kind of section in one round over the tasks.
        learning_rate: At its height; it rises over the first steps and falls linearly to zero.
        answer_weight: Of the answers' loss, beside 1 for the loss of running text.
        balance_weight: Of the loss that keeps all experts in use.
        quality_examples: Held-out examples of each task that the report is measured on, at most.
        quality_tokens: Tokens of validation text that perplexity is measured on, at most.
    """

    steps: int = 320
    text_tokens: int = 1024
    row_tokens: int = 512
    task_tokens: int = 3072
    examples_per_kind: int = 700
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    answer_weight: float = 2.0
    balance_weight: float = 0.02
    quality_examples: int = 200
    quality_tokens: int = 32768


@dataclass(frozen=True)
class TrainingReport:
    """What a training run did and how good the result is.

    training.json holds the same facts but the seconds, so that the same training writes the same bytes.
    """

    steps: int
    seconds: float
    text_tokens: int
    task_tokens: int
    parameters: int
    threads: int
    seed: int
    final_loss: float
    quality: ReferenceQuality

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def train_reference(
    config: dict[str, Any], out: Path, seed: int, plan: TrainingPlan | None = None
) -> TrainingReport:
    """Trains a Llama 4 and its tokenizer and writes them as a Hugging Face directory.

    Args:
        config: Keyword arguments of transformers.Llama4TextConfig.
        out: Directory for config.json, model.safetensors (float32), generation_config.json, the tokenizer's
            files and training.json.
        seed: Of the first weights and of the order of the texts.
        plan: How long and on what; the default gives the embedded model in about three minutes on two cores.

    Raises:
        InputError: This Python lacks the texts to train on.
    """
    plan = plan or TrainingPlan()
    splits = split_corpus(read_corpus())
    started = time.monotonic()
    with _reproducible(seed):
        texts = documents(splits.train)
        tokenizer = train_tokenizer(
            texts, config["vocab_size"], Llama4TextConfig(**config).max_position_embeddings
        )
        model = Llama4ForCausalLM(_model_config(config, tokenizer))
        batches = _Batches(splits.train, tokenizer, plan, random.Random(seed))
        final_loss = _train(model, batches, plan)
        seconds = time.monotonic() - started
        _save(model, tokenizer, out)
        quality = measure_quality(out, splits, plan.quality_examples, plan.quality_tokens)
    report = TrainingReport(
        steps=plan.steps,
        seconds=round(seconds, 1),
        text_tokens=batches.text_tokens_seen,
        task_tokens=batches.task_tokens_seen,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        threads=_THREADS,
        seed=seed,
        final_loss=round(final_loss, 4),
        quality=quality,
    )
    facts = {name: value for name, value in report.to_json().items() if name != "seconds"}
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    return report


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeds PyTorch and fixes what else changes its sums; puts the process's settings back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _model_config(config: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Llama4TextConfig:
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return Llama4TextConfig(**{**config, **special})


class _Batches:
    """Rows of tokens, in an order that the given random numbers decide."""

    def __init__(
        self,
        sections: tuple[Section, ...],
        tokenizer: PreTrainedTokenizerFast,
        plan: TrainingPlan,
        order: random.Random,
    ) -> None:
        self._tokenizer, self._plan, self._order = tokenizer, plan, order
        self._documents = [
            [*tokens, tokenizer.eos_token_id]
            for tokens in tokenizer(documents(sections), verbose=False).input_ids
        ]
        examples = balanced(summarise_examples(sections), plan.examples_per_kind)
        examples += balanced(classify_examples(sections), plan.examples_per_kind)
        self._examples = self._tokenized(examples)
        self.text_tokens_seen = self.task_tokens_seen = 0

    def text(self) -> Iterator[torch.Tensor]:
        """Running text without end: the documents one after the other, [rows, tokens]."""
        stream = chain.from_iterable(self._shuffled_forever(self._documents))
        for batch in count(1):
            rows = 1 if batch % 4 == 0 else self._plan.text_tokens // self._plan.row_tokens
            tokens = [next(stream) for _ in range(self._plan.text_tokens)]
            self.text_tokens_seen += len(tokens)
            yield torch.tensor(tokens).view(rows, -1)

    def tasks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Examples of like length in rows, padded on the right, without end.

        Yields:
            The tokens [rows, tokens], and the same where the answers stand, -100 elsewhere.
        """
        while True:
            for examples in self._example_batches():
                longest = max(len(prompt) + len(answer) for prompt, answer in examples)
                tokens = torch.full((len(examples), longest), self._tokenizer.pad_token_id)
                answers = torch.full_like(tokens, _IGNORED)
                for row, (prompt, answer) in enumerate(examples):
                    end = len(prompt) + len(answer)
                    tokens[row, :end] = torch.tensor(prompt + answer)
                    answers[row, len(prompt) : end] = torch.tensor(answer)
                self.task_tokens_seen += tokens.numel()
                yield tokens, answers

    def _tokenized(self, examples: list[Example]) -> list[tuple[list[int], list[int]]]:
        prompts = self._tokenizer([example.prompt for example in examples]).input_ids
        answers = self._tokenizer(
            [f" {example.answer}" for example in examples], add_special_tokens=False
        ).input_ids
        return [
            (prompt, [*answer, self._tokenizer.eos_token_id])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _example_batches(self) -> list[list[tuple[list[int], list[int]]]]:
        """One round over the examples: neighbors in length share a batch, batches come in random order."""
        examples = list(self._examples)
        self._order.shuffle(examples)
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
        batches, batch = [], [examples[0]]
        for example in examples[1:]:
            if (len(batch) + 1) * (len(example[0]) + len(example[1])) > self._plan.task_tokens:
                batches.append(batch)
                batch = []
            batch.append(example)
        batches.append(batch)
        self._order.shuffle(batches)
        return batches

    def _shuffled_forever(self, items: list[list[int]]) -> Iterator[list[int]]:
        while True:
            yield from self._order.sample(items, len(items))


def _train(model: Llama4ForCausalLM, batches: _Batches, plan: TrainingPlan) -> float:
    """Updates the model's weights in place; returns the mean loss of running text over the last tenth."""
    model.train()
    optimizers = _optimizers(model, plan)
    text, tasks = batches.text(), batches.tasks()
    losses = []
    with sparse_experts(model) as router_logits, Progress("train", plan.steps) as progress:
        for step in range(plan.steps):
            _set_learning_rate(optimizers, plan, step)
            loss = _text_loss(model, next(text))
            losses.append(loss.item())
            loss = loss + _task_loss(model, *next(tasks), plan.answer_weight)
            loss = loss + plan.balance_weight * balance_loss(router_logits, model.config.num_experts_per_tok)
            router_logits.clear()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            progress.advance(note=f"loss {losses[-1]:.3f}")
    last = losses[-max(1, plan.steps // 10) :]
    return sum(last) / len(last)


def _optimizers(model: Llama4ForCausalLM, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for norms, routers, embedding and head."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith("model.layers.") and parameter.dim() > 1 and "router" not in name
        (matrices if inside else others).append(parameter)
    return [
        Muon(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay),
        torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _set_learning_rate(optimizers: list[torch.optim.Optimizer], plan: TrainingPlan, step: int) -> None:
    rising = (step + 1) / max(1, plan.steps // 20)
    falling = (plan.steps - step) / (0.8 * plan.steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, rising, falling)


def _text_loss(model: Llama4ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _task_loss(
    model: Llama4ForCausalLM, tokens: torch.Tensor, answers: torch.Tensor, answer_weight: float
) -> torch.Tensor:
    """Loss of the prompts, which are text too, and of the answers, each averaged over its own tokens."""
    logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    losses = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    is_answer = answers[:, 1:].flatten() != _IGNORED
    is_prompt = ~is_answer & (tokens[:, 1:].flatten() != model.config.pad_token_id)
    return losses[is_prompt].mean() + answer_weight * losses[is_answer].mean()


def _save(model: Llama4ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    special_tokens = json.dumps(tokenizer.special_tokens_map, indent=2)
    (out / "special_tokens_map.json").write_text(special_tokens + "\n")
