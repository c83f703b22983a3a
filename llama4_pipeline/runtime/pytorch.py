"""transformers as an engine: the reference implementation, eager or compiled."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import EMPTY_MASK, extend_mask, position_ids
from llama4_pipeline.runtime.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

_COMPILED_LENGTHS = (16, 1, 1)


class PyTorchDecoder:
    """Runs `Llama4ForCausalLM` with eager attention; implements `Decoder`.

    The cache is a `DynamicCache` without a configuration, which keeps every token: one made from the configuration
    crops chunked layers, and then a second turn sees less than the model does.

    Args:
        checkpoint: an opened checkpoint.
        dtype: "float32", "bfloat16" or "float16".
        threads: of PyTorch's operators; 0 leaves its choice.
        device: "cpu" or "cuda".
        compiled: run through `torch.compile`. Opening compiles prefill and decode at batch 1; another batch size
            compiles when it first comes.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        dtype: str = "float32",
        threads: int = 0,
        device: str = "cpu",
        *,
        compiled: bool,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.engine = "torch-compile" if compiled else "pytorch"
        self.vocab_size = checkpoint.architecture.vocab_size
        self.max_context = checkpoint.architecture.max_position_embeddings
        self._device = device
        self._model = checkpoint.load_model(dtype, device)
        self._run = torch.compile(self._model, dynamic=True) if compiled else self._model
        self.reset()
        if compiled:
            self._compile()

    def reset(self) -> None:
        self._cache = DynamicCache()
        self.mask = EMPTY_MASK

    @torch.inference_mode()
    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        mask = extend_mask(
            self.mask, input_ids, attention_mask, vocab_size=self.vocab_size, max_context=self.max_context
        )
        try:
            output = self._run(
                input_ids=self._tensor(input_ids),
                attention_mask=self._tensor(mask),
                position_ids=self._tensor(position_ids(mask, input_ids.shape[1])),
                past_key_values=self._cache,
                logits_to_keep=logits_to_keep,
                use_cache=True,
            )
        except BaseException as error:
            self.reset()
            if not is_out_of_memory(error):
                raise
            rows, new = input_ids.shape
            raise InputError(
                f"no memory for a run of {rows} rows of {new:,} tokens: ask for fewer"
            ) from error
        self.mask = mask
        return output.logits.float().cpu().numpy()

    def cache_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values, *_ in self._cache if keys is not None)

    def providers(self) -> dict[str, int]:
        return {"PyTorch": 0}

    def close(self) -> None:
        del self._run, self._model, self._cache

    def _compile(self) -> None:
        """Runs a prompt and steps behind it as `generate` does, so that compiling is part of loading."""
        for new in _COMPILED_LENGTHS:
            self.forward(np.zeros((1, new), dtype=np.int64), logits_to_keep=1)
        self.reset()

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        # A copy, since numpy's strides of axes of length 1 vary, and compiled code would be compiled again for each.
        return torch.tensor(values, device=self._device)
