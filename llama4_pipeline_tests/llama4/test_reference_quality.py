"""Answers of several tokens are judged whole."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Llama4ForCausalLM

from llama4_pipeline.data.tasks import Example
from llama4_pipeline.llama4 import reference_quality


def test_an_answer_counts_only_if_all_its_tokens_do(tiny_random_checkpoint: Path) -> None:
    model = Llama4ForCausalLM.from_pretrained(tiny_random_checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_random_checkpoint)
    prompt = "the of and to"
    with torch.inference_mode():
        new = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    said = tokenizer.decode(new[0, -6:]).split()
    assert len(said) == 6
    beginning, other_end = " ".join(said[:1]), " ".join([*said[:5], "the" if said[5] != "the" else "of"])

    def accuracy(*answers: str) -> float:
        examples = [Example("", prompt, answer) for answer in answers]
        return reference_quality._accuracy(model, tokenizer, examples)

    assert accuracy(" ".join(said)) == 1
    assert accuracy(beginning) == accuracy(other_end) == 0
    assert accuracy(" ".join(said), beginning, other_end) == pytest.approx(1 / 3)
