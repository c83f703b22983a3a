"""llama.cpp on a GGUF file of the same checkpoint: the same logits as PyTorch, row by row and step by step."""

import signal
import threading
import time

import numpy as np
import pytest
import torch

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is in the extra llamacpp")

import llama_cpp

from llama4_pipeline.llama4.gguf import write_gguf
from llama4_pipeline.runtime import llamacpp

REPRESENTABLE = {
    "hidden_size": 64,
    "intermediate_size_mlp": 96,
    "floor_scale": 8192,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 16384,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "experts": {"moe_layers": None, "num_experts_per_tok": 2},
    "experts in every second layer": {"moe_layers": [1, 3], "rope_parameters": LLAMA3},
    "dense": {"moe_layers": []},
    "dense without QK norm": {"moe_layers": [], "use_qk_norm": False},
    "dense, RoPE everywhere, tied": {
        "moe_layers": [],
        "no_rope_layers": [1, 1, 1, 1],
        "tie_word_embeddings": True,
    },
}
IDS = np.random.default_rng(0).integers(0, 131, (3, 40))


@pytest.fixture(params=MODELS, ids=lambda name: name.replace(" ", "-"))
def engines(request, tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", **(REPRESENTABLE | MODELS[request.param]))
    write_gguf(Checkpoint.open(checkpoint), tmp_path / "model.gguf", "f32", 300)
    llamacpp = open_decoder("llama.cpp", checkpoint=tmp_path / "model.gguf", threads=1)
    yield llamacpp, open_decoder("pytorch", checkpoint=checkpoint, threads=1)
    llamacpp.close()


@pytest.fixture
def dense(tmp_path):
    """A GGUF file of a dense model in q8_0, with room for 300 tokens."""
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", **(REPRESENTABLE | MODELS["dense"]))
    write_gguf(Checkpoint.open(checkpoint), tmp_path / "model.gguf", "q8_0", 300)
    return tmp_path / "model.gguf"


@pytest.fixture
def decoder(dense):
    opened = open_decoder("llama.cpp", checkpoint=dense, threads=1)
    yield opened
    opened.close()


def test_rows_of_different_length_prefill_and_decode(engines):
    llamacpp, pytorch = engines
    mask = np.ones_like(IDS)
    mask[1, :7] = mask[2, :30] = 0
    mine, theirs = llamacpp.forward(IDS, mask), pytorch.forward(IDS, mask)
    np.testing.assert_allclose(mine[mask == 1], theirs[mask == 1], atol=5e-5)
    for column in range(3):
        step = IDS[:, column : column + 1]
        np.testing.assert_allclose(llamacpp.forward(step), pytorch.forward(step), atol=5e-5)
    llamacpp.reset(), pytorch.reset()
    kept = llamacpp.forward(IDS[:1], logits_to_keep=2)
    np.testing.assert_allclose(kept, pytorch.forward(IDS[:1], logits_to_keep=2), atol=5e-5)


def test_attention_without_flash_is_another_kernel_of_the_same_function(dense, decoder):
    plain = open_decoder("llama.cpp-no-flash-attention", checkpoint=dense, threads=1)
    usual, other = decoder.forward(IDS), plain.forward(IDS)
    plain.close()
    assert (usual != other).any()
    assert np.linalg.norm(other - usual) < 0.1 * np.linalg.norm(usual)


def test_context_is_what_the_file_promises(decoder):
    decoder.forward(np.ones((2, 300), dtype=np.int64), logits_to_keep=1)
    # Rows, slots (llama.cpp rounds 300 tokens up), layers, K and V, heads, width, f16.
    assert decoder.cache_bytes() == 2 * 512 * 4 * 2 * 2 * 16 * 2
    with pytest.raises(InputError, match="301 tokens do not fit"):
        decoder.forward(np.ones((2, 1), dtype=np.int64))


def test_what_another_library_does_with_amx_between_does_not_count(decoder):
    """Where the processor has none, this says nothing."""
    before = decoder.forward(IDS)
    ones = torch.ones(256, 256, dtype=torch.bfloat16)
    torch.nn.functional.linear(ones, ones)
    decoder.reset()
    np.testing.assert_array_equal(decoder.forward(IDS), before)


def test_what_starts_threads_is_one_thread(dense, monkeypatch):
    """With AMX, loading starts some too; those of a second one make libgomp put all to sleep at each barrier."""
    callers = {}
    for name in ("llama_model_load_from_file", "llama_decode"):
        real = getattr(llama_cpp, name)

        def noted(*arguments, real=real, name=name):
            callers[name] = threading.get_ident()
            return real(*arguments)

        monkeypatch.setattr(llama_cpp, name, noted)
    decoder = open_decoder("llama.cpp", checkpoint=dense, threads=1)
    decoder.forward(IDS)
    decoder.close()
    assert len(callers) == 2 and len(set(callers.values())) == 1


def test_a_batch_that_llamacpp_makes_no_cache_for_leaves_room_for_another(decoder):
    before = decoder.forward(IDS)
    decoder.reset()
    with pytest.raises(InputError, match="cannot make a cache of 300 rows"):
        decoder.forward(np.ones((300, 2), dtype=np.int64))
    assert decoder.cache_bytes() == 0
    decoder.reset()
    np.testing.assert_array_equal(decoder.forward(IDS), before)


def test_a_prompt_that_is_not_read_to_its_end_leaves_nothing(decoder, monkeypatch):
    before = decoder.forward(IDS)
    decoder.reset()
    monkeypatch.setattr(llamacpp, "_TOKENS_PER_CALL", 50)
    decode, results = llama_cpp.llama_decode, iter([0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", lambda *arguments: decode(*arguments) or next(results))
        with pytest.raises(CheckFailed, match="could not decode"):
            decoder.forward(IDS)
    assert decoder.mask.size == 0
    np.testing.assert_allclose(decoder.forward(IDS), before, atol=1e-4)


def test_an_interrupt_waits_for_the_tokens_that_are_being_read(decoder, monkeypatch):
    """Their batch would be freed under them, and the next call would find them in the cache."""
    before = decoder.forward(IDS)
    decoder.reset()
    decode, free, happened = llama_cpp.llama_decode, llama_cpp.llama_batch_free, []

    def slow_decode(*arguments):
        signal.raise_signal(signal.SIGINT)  # Python hands it to the main thread, which waits
        time.sleep(0.5)
        happened.append("decoded")
        return decode(*arguments)

    def noted_free(batch):
        happened.append("freed")
        free(batch)

    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_decode", slow_decode)
        patch.setattr(llama_cpp, "llama_batch_free", noted_free)
        with pytest.raises(KeyboardInterrupt):
            decoder.forward(IDS)
    assert happened == ["decoded", "freed"]
    np.testing.assert_array_equal(decoder.forward(IDS), before)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no GGUF")
    with pytest.raises(InputError, match=r"llama\.cpp cannot load this file"):
        open_decoder("llama.cpp", checkpoint=tmp_path / "model.gguf")
