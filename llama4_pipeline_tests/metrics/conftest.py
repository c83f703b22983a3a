"""A small Llama 4 of transformers behind the Decoder protocol, apart from the package's own engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, Llama4ForCausalLM, PreTrainedTokenizerBase


class TransformersDecoder:
    """Transformers eager with its own cache; `noise` disturbs the logits as a quantised model would."""

    engine = "transformers"
    max_context = 128

    def __init__(self, model: Llama4ForCausalLM, noise: float = 0.0) -> None:
        self._model, self._noise = model, noise
        self.vocab_size = model.config.vocab_size
        self.reset()

    def reset(self) -> None:
        self.mask = np.zeros((0, 0), dtype=np.int64)
        self._cache = DynamicCache(config=self._model.config)
        self._random = np.random.default_rng(0)

    @torch.no_grad()
    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        past = self.mask if self.mask.size else np.zeros((len(input_ids), 0), dtype=np.int64)
        if attention_mask is None:
            attention_mask = np.concatenate([past, np.ones_like(input_ids)], axis=1)
        self.mask = attention_mask
        mask = torch.from_numpy(attention_mask)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past.shape[1] :]
        logits = self._model(
            torch.from_numpy(input_ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            logits_to_keep=logits_to_keep,
        ).logits.numpy()
        return logits + self._noise * self._random.standard_normal(logits.shape, dtype=np.float32)

    def cache_bytes(self) -> int:
        return 0

    def providers(self) -> dict[str, int]:
        return {"PyTorch": 0}

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def model(tiny_random_checkpoint: Path) -> Llama4ForCausalLM:
    return Llama4ForCausalLM.from_pretrained(tiny_random_checkpoint, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def tokenizer(tiny_random_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_random_checkpoint)


@pytest.fixture
def decoder(model: Llama4ForCausalLM) -> TransformersDecoder:
    return TransformersDecoder(model)


@pytest.fixture
def disturbed(model: Llama4ForCausalLM) -> TransformersDecoder:
    return TransformersDecoder(model, noise=0.5)
