"""transformers as an engine: a cache that keeps everything, and the compiled form."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Llama4ForCausalLM

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline.runtime.pytorch import PyTorchDecoder

IDS = np.random.default_rng(0).integers(0, 131, (1, 40))


def test_steps_equal_one_call_without_cache(tiny_random_checkpoint, reference):
    model = Llama4ForCausalLM.from_pretrained(tiny_random_checkpoint, attn_implementation="eager").eval()
    with torch.inference_mode():
        whole = model(torch.from_numpy(IDS), use_cache=False).logits.numpy()
    cuts = [0, 14, 15, 16, 30, 40]  # chunks of attention are 16 tokens
    parts = [reference.forward(IDS[:, begin:end]) for begin, end in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-5)


@pytest.mark.parametrize("words", ["DefaultCPUAllocator: can't allocate memory", "CUDA out of memory"])
def test_a_prompt_that_no_memory_holds_is_refused(tiny_random_checkpoint, words, monkeypatch):
    decoder = PyTorchDecoder(Checkpoint.open(tiny_random_checkpoint), threads=1, compiled=False)

    def full(*_, **__):
        raise RuntimeError(words)

    monkeypatch.setattr(decoder, "_run", full)
    with pytest.raises(InputError, match="no memory for a run of 1 rows of 40 tokens: ask for fewer"):
        decoder.forward(IDS)


def test_a_prompt_that_is_not_read_to_its_end_leaves_nothing(tiny_random_checkpoint, reference):
    decoder = PyTorchDecoder(Checkpoint.open(tiny_random_checkpoint), threads=1, compiled=False)
    decoder.forward(IDS[:, :5])

    def end(*_):
        raise KeyboardInterrupt

    hook = decoder._model.model.layers[2].register_forward_pre_hook(end)
    with pytest.raises(KeyboardInterrupt):
        decoder.forward(IDS[:, 5:])
    hook.remove()
    assert decoder.mask.size == 0
    np.testing.assert_allclose(decoder.forward(IDS), reference.forward(IDS), atol=2e-5)


@pytest.mark.slow
def test_compiled_is_the_same_function(tiny_random_checkpoint, reference):
    compiled = open_decoder("torch-compile", checkpoint=tiny_random_checkpoint)
    for new in (20, 1, 1):
        np.testing.assert_allclose(compiled.forward(IDS[:, :new]), reference.forward(IDS[:, :new]), atol=2e-5)
