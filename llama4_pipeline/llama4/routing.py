"""Which experts texts reach: what calibration of a mixture has to know of them."""

from collections.abc import Sequence

import torch
from transformers import Llama4ForCausalLM, PreTrainedTokenizerBase

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.sparse_experts import sparse_experts
from llama4_pipeline.llama4.tokenizer import require_in_vocabulary
from llama4_pipeline.progress import Progress

_BATCH = 16
_LONGEST = 512  # tokens of a text that are looked at


class ExpertReach:
    """Counts the tokens of texts by the experts that the model's routers choose for them.

    Args:
        model: transformers' Llama 4 with at least one MoE layer.
        tokenizer: of the model.

    Attributes:
        experts: (layer, expert) of each column that `count` gives.
    """

    def __init__(self, model: Llama4ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        architecture = Architecture.from_config(model.config)
        self.experts: Sequence[tuple[int, int]] = [
            (layer.index, expert) for layer in architecture.layers for expert in range(layer.experts)
        ]
        self._model, self._tokenizer = model.eval(), tokenizer
        self._choices, self._vocab_size = architecture.experts_per_token, architecture.vocab_size

    @torch.inference_mode()
    def count(self, texts: Sequence[str]) -> torch.Tensor:
        """Tokens of each text, its first 512 at most, that each expert gets: int64 [texts, experts].

        Raises:
            InputError: The tokenizer gives an id outside the model's vocabulary.
        """
        encoded = [ids[:_LONGEST] for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]
        for ids in encoded:
            require_in_vocabulary(ids, self._vocab_size, self._tokenizer.name_or_path)
        rows = [torch.tensor(ids, dtype=torch.int64) for ids in encoded]
        counts = torch.zeros(len(rows), len(self.experts), dtype=torch.int64)
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        with (
            sparse_experts(self._model) as router_logits,
            Progress("routing", len(rows), "texts") as progress,
        ):
            for start in range(0, len(rows), _BATCH):
                batch = by_length[start : start + _BATCH]
                # Padding stands behind the text, where causal attention does not see it.
                ids = torch.nn.utils.rnn.pad_sequence([rows[row] for row in batch], batch_first=True)
                self._model(ids, use_cache=False, logits_to_keep=1)
                chosen = self._chosen(router_logits, ids.shape)  # [rows, tokens, experts of all layers]
                router_logits.clear()
                for place, row in enumerate(batch):
                    counts[row] = chosen[place, : len(rows[row])].sum(0)
                progress.advance(len(batch))
        return counts

    def _chosen(self, router_logits: Sequence[torch.Tensor], shape: torch.Size) -> torch.Tensor:
        layers = [
            torch.zeros_like(logits, dtype=torch.int64).scatter_(-1, logits.topk(self._choices).indices, 1)
            for logits in router_logits
        ]
        return torch.cat(layers, dim=-1).reshape(*shape, -1)
