"""Our side of TensorRT-LLM, over a stand-in for its library: rows without padding, streams, what is asked of it."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime import engines
from llama4_pipeline.runtime.engines import EngineUnavailable, open_decoder
from llama4_pipeline.runtime.generate import FINISHED, generate, pad_left
from llama4_pipeline.runtime.pytorch import PyTorchDecoder
from llama4_pipeline.runtime.sampling import Sampler, Sampling
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

OURS = "llama4_pipeline.runtime.tensorrt_llm"
PROMPTS = [[5, 17, 99, 3, 64, 21, 8, 8, 120, 44], [7], [90, 91, 92, 93]]


@dataclass(kw_only=True)
class SamplingParams:
    """The fields of `tensorrt_llm.SamplingParams` that we set; another name is a TypeError there too."""

    max_tokens: int = 32
    end_id: int | None = None
    pad_id: int | None = None
    stop_token_ids: list[int] | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    seed: int | None = None
    return_context_logits: bool = False
    ignore_eos: bool = False
    detokenize: bool = True

    def sampler(self) -> Sampler:
        """Greedy where nothing or the best token alone is asked for."""
        asked = (self.top_k, self.top_p, self.temperature)
        if asked == (None, None, None) or self.top_k == 1 or self.top_p == 0 or self.temperature == 0:
            return Sampler(Sampling())
        return Sampler(Sampling(self.temperature or 1.0, self.top_k or 0, self.top_p or 1.0), self.seed or 0)


@dataclass
class CompletionOutput:
    """One answer as far as it has come."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None


class RequestOutput:
    """A request: iterating hands out itself, a token further each time, and its stop token only as the reason.

    One that does not stream hands itself out once, with all tokens.
    """

    def __init__(
        self,
        tokens: list[int],
        parameters: SamplingParams,
        context_logits: torch.Tensor | None,
        streaming: bool,
    ) -> None:
        self.outputs = [CompletionOutput()]
        self.context_logits = context_logits
        self._left, self._stops = list(tokens), parameters.stop_token_ids or []
        self._step = 1 if streaming else len(tokens)
        self.aborted = False

    @property
    def finished(self) -> bool:
        return bool(self.outputs[0].finish_reason)

    def abort(self) -> None:
        self.aborted = True

    def __iter__(self) -> "RequestOutput":
        return self

    def __next__(self) -> "RequestOutput":
        [output] = self.outputs
        if output.finish_reason:
            raise StopIteration
        output.token_ids += self._left[: self._step]
        del self._left[: self._step]
        if not self._left:
            output.finish_reason = "length"
            if output.token_ids[-1] in self._stops:
                output.finish_reason, output.stop_reason = "stop", output.token_ids.pop()
        return self


@dataclass(kw_only=True)
class KvCacheConfig:
    """`tensorrt_llm.llmapi.KvCacheConfig`."""

    enable_block_reuse: bool = True


class LLM:
    """`tensorrt_llm.LLM` on transformers: each request is computed when it is submitted, by itself.

    As in the library, logits of a prompt are those of the tokens that are computed: what an earlier request left in
    the cache is not, but for the last token.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        skip_tokenizer_init: bool = False,
        kv_cache_config: KvCacheConfig | None = None,
    ) -> None:
        assert isinstance(model, str)
        assert skip_tokenizer_init, "the checkpoint's tokenizer would be loaded"
        self.dtype = dtype
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.answers: list[RequestOutput] = []
        self.is_open = True
        self._reuses = (kv_cache_config or KvCacheConfig()).enable_block_reuse
        self._cached: list[list[int]] = []
        self._model = PyTorchDecoder(Checkpoint.open(model), threads=1, compiled=False)

    def generate(
        self, inputs: list[list[int]], sampling_params: SamplingParams, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm, "a bar on standard error for every step"
        requests = [self.generate_async(row, sampling_params) for row in inputs]
        for request in requests:
            list(request)
        return requests

    def generate_async(
        self, inputs: list[int], sampling_params: SamplingParams, streaming: bool = False
    ) -> RequestOutput:
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if not inputs:
            raise ValueError("an empty prompt")
        assert all(type(token) is int for token in inputs)
        self.requests.append((list(inputs), sampling_params))
        known = max((_common(inputs, row) for row in self._cached), default=0) if self._reuses else 0
        tokens, logits = self._run(inputs, sampling_params)
        self._cached.append(inputs + tokens[:-1])
        computed = torch.from_numpy(logits[min(known, len(inputs) - 1) :])
        returned = computed if sampling_params.return_context_logits else None
        self.answers.append(RequestOutput(tokens, sampling_params, returned, streaming))
        return self.answers[-1]

    def evict(self) -> None:
        """As when the pool of blocks is full."""
        self._cached.clear()

    def shutdown(self) -> None:
        self.is_open = False

    def _run(self, prompt: list[int], parameters: SamplingParams) -> tuple[list[int], np.ndarray]:
        """The tokens, with the stop token, and the logits of the prompt."""
        choose = parameters.sampler()
        self._model.reset()
        of_prompt = self._model.forward(np.array([prompt]))[0]
        tokens = choose(of_prompt[-1:]).tolist()
        while len(tokens) < parameters.max_tokens and tokens[-1] not in (parameters.stop_token_ids or ()):
            tokens += choose(self._model.forward(np.array([tokens[-1:]]))[:, -1]).tolist()
        return tokens, of_prompt


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of what both begin with."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Nothing in it counts padding: chunks and the temperature of transformers do, where each row here is alone."""
    out = tmp_path_factory.mktemp("tensorrt-llm")
    return write_random_checkpoint(out, attn_temperature_tuning=False, attention_chunk_size=4096)


@pytest.fixture(scope="module")
def reference(checkpoint) -> PyTorchDecoder:
    return PyTorchDecoder(Checkpoint.open(checkpoint), threads=1, compiled=False)


@pytest.fixture
def library(monkeypatch) -> Iterator[ModuleType]:
    module, llmapi = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.llmapi")
    module.__spec__ = ModuleSpec("tensorrt_llm", None)
    vars(llmapi).update(KvCacheConfig=KvCacheConfig)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams, llmapi=llmapi)
    monkeypatch.setitem(sys.modules, "tensorrt_llm", module)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.llmapi", llmapi)
    monkeypatch.setattr(engines, "first_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(engines, "missing_cuda_build", lambda *_libraries: None)
    sys.modules.pop(OURS, None)
    yield module
    sys.modules.pop(OURS, None)


@pytest.fixture
def decoder(library, checkpoint, reference):
    reference.reset()
    decoder = open_decoder("tensorrt-llm", checkpoint=checkpoint, dtype="float16", device="cuda")
    yield decoder
    decoder.close()
    assert not decoder._llm.is_open  # type: ignore[attr-defined]


def rows(steps) -> list[list[int]]:
    return np.stack(list(steps), axis=1).tolist()


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_is_left_out_of_what_is_submitted(decoder, reference, side):
    ids = np.random.default_rng(0).integers(0, 131, (3, 12))
    mask = np.ones_like(ids)
    if side != "right":
        mask[1, :5] = 0
    if side != "left":
        mask[2, -4:] = 0
    mine, theirs = decoder.forward(ids, mask), reference.forward(ids, mask)
    np.testing.assert_allclose(mine[mask == 1], theirs[mask == 1], atol=5e-5)
    assert mine.dtype == np.float32
    assert [row for row, _ in decoder._llm.requests] == [ids[i, mask[i] == 1].tolist() for i in range(3)]


def test_steps_append_to_each_row_what_is_real_in_it(decoder, reference):
    ids, mask = pad_left(PROMPTS)
    decoder.forward(ids, mask), reference.forward(ids, mask)
    for step, alive in enumerate(([1, 1, 1], [1, 0, 1], [0, 1, 1])):
        new = np.array([[10 + step], [20 + step], [30 + step]])
        mask = np.concatenate([mask, np.array(alive)[:, None]], axis=1)
        if step == 2:
            decoder._llm.evict()
        mine, theirs = decoder.forward(new, mask), reference.forward(new, mask)
        real = np.array(alive) == 1
        np.testing.assert_allclose(mine[real], theirs[real], atol=5e-5)
    assert decoder.mask.tolist() == mask.tolist()
    assert decoder._llm.requests[-2][0] == [*PROMPTS[1], 20, 22]
    tokens = sum(map(len, PROMPTS)) + 2 + 2 + 3
    assert (
        decoder.cache_bytes() == tokens * 4 * 2 * 2 * 16 * 2
    )  # layers, key and value, heads, width, float16


def test_keeps_the_last_logits(decoder, reference):
    ids = np.array([PROMPTS[0]])
    kept = decoder.forward(ids, logits_to_keep=3)
    np.testing.assert_allclose(kept, reference.forward(ids, logits_to_keep=3), atol=5e-5)


def test_a_prompt_that_was_read_before_has_all_its_logits(decoder, reference):
    ids = np.array([PROMPTS[0]])
    decoder.forward(ids)
    decoder.reset()
    np.testing.assert_allclose(decoder.forward(ids), reference.forward(ids), atol=5e-5)


def test_greedy_tokens_are_those_of_transformers_in_one_request_a_row(decoder, reference):
    ids, mask = pad_left(PROMPTS)
    expected = rows(generate(reference, ids, mask, max_new_tokens=32))
    assert rows(generate(decoder, ids, mask, max_new_tokens=32)) == expected
    assert [row for row, _ in decoder._llm.requests] == PROMPTS
    np.testing.assert_array_equal(decoder.mask, reference.mask)
    for _, asked in decoder._llm.requests:
        assert (asked.max_tokens, asked.top_k, asked.temperature) == (32, 1, None)
        assert asked.ignore_eos
        assert asked.end_id == -1
        assert asked.stop_token_ids is None
        assert not asked.detokenize


def test_streams_as_tokens_come(decoder):
    ids, mask = pad_left(PROMPTS)
    steps = generate(decoder, ids, mask, max_new_tokens=8)
    first = next(steps)
    assert (first.shape, first.dtype) == ((3,), np.int64)
    assert decoder.mask.shape == ids.shape
    assert [answer.outputs[0].token_ids for answer in decoder._llm.answers] == [[token] for token in first]
    second = next(steps)
    assert decoder._rows == [[*prompt, token] for prompt, token in zip(PROMPTS, first, strict=True)]
    assert not np.array_equal(first, second)


def test_a_stream_that_is_left_takes_its_requests_back(decoder):
    ids, mask = pad_left(PROMPTS)
    stop = rows(generate(decoder, ids, mask, max_new_tokens=2))[0][1]
    decoder.reset()
    steps = generate(decoder, ids, mask, max_new_tokens=8, stop_tokens=[stop])
    next(steps), next(steps)
    steps.close()
    answers = decoder._llm.answers
    assert [answer.finished for answer in answers[-3:]] == [True, False, False]
    assert [answer.aborted for answer in answers] == [False] * 4 + [True] * 2


def test_stop_tokens_are_yielded_and_rows_go_on_in_the_second_turn(decoder, reference):
    ids, mask = pad_left(PROMPTS)
    stop = rows(generate(reference, ids, mask, max_new_tokens=4))[0][2]
    question, question_mask = pad_left([[stop, 11, 12], [13, 14], [15]])

    def two_turns(decoder) -> list[list[int]]:
        decoder.reset()
        first = rows(generate(decoder, ids, mask, max_new_tokens=8, stop_tokens=[stop]))
        return first + rows(generate(decoder, question, question_mask, max_new_tokens=8))

    expected = two_turns(reference)
    assert expected[0][2:4] == [stop, FINISHED]
    assert two_turns(decoder) == expected
    np.testing.assert_array_equal(decoder.mask, reference.mask)


def test_ends_when_all_rows_have(decoder, reference):
    ids, mask = pad_left(PROMPTS)
    [first] = generate(reference, ids, mask, max_new_tokens=1)
    steps = list(generate(decoder, ids, mask, max_new_tokens=50, stop_tokens=first.tolist()))
    assert [step.tolist() for step in steps] == [first.tolist()]


def test_sampling_is_the_library_s(decoder):
    ids, mask = pad_left(PROMPTS)
    list(
        generate(
            decoder, ids, mask, max_new_tokens=3, sampling=Sampling(0.8, 20, 0.9), stop_tokens=(2,), seed=4
        )
    )
    list(generate(decoder, ids, mask, max_new_tokens=3, sampling=Sampling(0.5)))
    asked = [parameters for _, parameters in decoder._llm.requests]
    assert (asked[0].temperature, asked[0].top_k, asked[0].top_p, asked[0].seed) == (0.8, 20, 0.9, 4)
    assert asked[0].stop_token_ids == [2]
    assert (asked[-1].temperature, asked[-1].top_k, asked[-1].top_p) == (0.5, None, 1.0)


def test_what_does_not_fit_is_refused_before_the_library_sees_it(decoder):
    ids = np.array([PROMPTS[0]])
    with pytest.raises(InputError, match=r"outside \[0, 131\)"):
        decoder.forward(np.array([[131]]))
    with pytest.raises(InputError, match="4097 tokens do not fit"):
        decoder.forward(np.ones((1, 4097), dtype=np.int64))
    with pytest.raises(InputError, match="hides every token of a row"):
        decoder.forward(ids, np.zeros_like(ids))
    with pytest.raises(InputError, match="pad rows on the left"):
        next(generate(decoder, np.array([[1, 2]]), np.array([[1, 0]]), max_new_tokens=1))
    assert decoder._llm.requests == []
    decoder.forward(ids)
    with pytest.raises(InputError, match="holds 1 rows and the input 2"):
        decoder.forward(np.array([[1], [2]]))
    with pytest.raises(InputError, match="must cover cache and input"):
        decoder.forward(np.array([[1]]), np.array([[1]]))
    assert len(decoder._llm.requests) == 1
    assert decoder.mask.shape == ids.shape


def test_opens_the_checkpoint_on_a_gpu_alone(decoder, checkpoint, monkeypatch):
    assert (decoder.engine, decoder.vocab_size, decoder.max_context) == ("tensorrt-llm", 131, 4096)
    assert decoder._llm.dtype == "float16"
    assert decoder.providers() == {"TensorRT-LLM": 0}
    with pytest.raises(EngineUnavailable, match="runs on CUDA only"):
        open_decoder("tensorrt-llm", checkpoint=checkpoint)
    monkeypatch.setattr(engines, "first_gpu", lambda: None)
    with pytest.raises(EngineUnavailable, match="no NVIDIA GPU"):
        open_decoder("tensorrt-llm", checkpoint=checkpoint, device="cuda")
