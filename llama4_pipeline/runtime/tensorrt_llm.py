"""TensorRT-LLM as an engine, through its Python LLM API on the Hugging Face directory.

Its scheduler runs the decode loop, so generation streams from it and is measured as it comes. `forward`, for logits,
submits the whole rows again, and blocks of the cache are not reused: of reused ones TensorRT-LLM gives no logits.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorrt_llm
from tensorrt_llm.llmapi import KvCacheConfig

from llama4_pipeline.runtime.decoder import EMPTY_MASK, extend_mask, over_cache
from llama4_pipeline.runtime.generate import FINISHED
from llama4_pipeline.runtime.sampling import Sampling

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

_CACHE_ELEMENT_BYTES = 2


class TensorRtLlmDecoder:
    """Runs a checkpoint on CUDA; implements `Decoder` and `GeneratesItself`.

    Args:
        checkpoint: an opened checkpoint with safetensors files; TensorRT-LLM reads its directory.
        dtype: "float16" or "bfloat16".
    """

    engine = "tensorrt-llm"

    def __init__(self, checkpoint: "Checkpoint", dtype: str = "float16") -> None:
        self._architecture = checkpoint.architecture
        self.vocab_size = checkpoint.architecture.vocab_size
        self.max_context = checkpoint.architecture.max_position_embeddings
        self._llm = tensorrt_llm.LLM(
            model=str(checkpoint.directory),
            dtype=dtype,
            skip_tokenizer_init=True,
            kv_cache_config=KvCacheConfig(enable_block_reuse=False),
        )
        self.reset()

    def reset(self) -> None:
        self._rows: list[list[int]] = []
        self.mask = EMPTY_MASK

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        self._append(input_ids, attention_mask)
        batch, new = input_ids.shape
        parameters = self._parameters(1, Sampling(), (), 0, return_context_logits=True)
        outputs = self._llm.generate(self._rows, parameters, use_tqdm=False)
        logits = np.zeros((batch, new, self.vocab_size), dtype=np.float32)
        for row, output in enumerate(outputs):
            real = np.flatnonzero(self.mask[row, -new:])
            if len(real):
                logits[row, real] = output.context_logits[-len(real) :].float().cpu().numpy()
        return logits[:, -logits_to_keep:]

    def stream(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop_tokens: Sequence[int],
        seed: int,
    ) -> Iterator[np.ndarray]:
        new = np.ones_like(input_ids) if attention_mask is None else attention_mask
        self._append(input_ids, over_cache(self.mask, new))
        parameters = self._parameters(max_new_tokens, sampling, stop_tokens, seed)
        streams = [self._llm.generate_async(list(row), parameters, streaming=True) for row in self._rows]
        steps = [_tokens(stream) for stream in streams]
        previous: np.ndarray | None = None
        try:
            for _ in range(max_new_tokens):
                tokens = np.array([next(row, FINISHED) for row in steps], dtype=np.int64)
                if (tokens == FINISHED).all():
                    return
                if previous is not None:
                    self._append(np.maximum(previous, 0)[:, None], self._with(previous >= 0))
                previous = np.where(np.isin(tokens, stop_tokens), FINISHED, tokens)
                yield tokens
        finally:
            for stream in streams:
                if not stream.finished:
                    stream.abort()

    def cache_bytes(self) -> int:
        """Of the cached tokens; the pool that TensorRT-LLM holds is a share of the device's memory."""
        return sum(
            self._architecture.kv_cache_bytes(len(row), bytes_per_element=_CACHE_ELEMENT_BYTES)
            for row in self._rows
        )

    def providers(self) -> dict[str, int]:
        return {"TensorRT-LLM": 0}

    def close(self) -> None:
        self._llm.shutdown()

    def _append(self, input_ids: np.ndarray, mask: np.ndarray | None) -> None:
        self.mask = extend_mask(
            self.mask, input_ids, mask, vocab_size=self.vocab_size, max_context=self.max_context
        )
        self._rows = self._rows or [[] for _ in input_ids]
        for row, ids, real in zip(self._rows, input_ids, self.mask[:, -input_ids.shape[1] :], strict=True):
            row.extend(ids[real == 1].tolist())

    def _with(self, alive: np.ndarray) -> np.ndarray:
        return np.concatenate([self.mask, alive.astype(np.int64)[:, None]], axis=1)

    def _parameters(
        self, max_tokens: int, sampling: Sampling, stop_tokens: Sequence[int], seed: int, **outputs: bool
    ) -> Any:
        drawing = (
            {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k or None,
                "top_p": sampling.top_p,
                "seed": seed,
            }
            if sampling.temperature
            else {"top_k": 1}
        )
        return tensorrt_llm.SamplingParams(
            max_tokens=max_tokens,
            end_id=-1,
            pad_id=-1,
            ignore_eos=True,
            stop_token_ids=list(stop_tokens) or None,
            detokenize=False,
            **drawing,
            **outputs,
        )


def _tokens(stream: Any) -> Iterator[int]:
    """The tokens of one streamed request, its stop token included."""
    seen = 0
    for result in stream:
        output = result.outputs[0]
        yield from output.token_ids[seen:]
        seen = len(output.token_ids)
        if output.finish_reason == "stop" and isinstance(output.stop_reason, int):
            yield output.stop_reason
