"""transformers' own Llama 4 as the judge, with its inner values read through hooks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, Llama4ForCausalLM

from llama4_pipeline.graph.validate.probes import EMBEDDING, FINAL_NORM, LOGITS, StepValues
from llama4_pipeline.graph.validate.uses import Case, Step


class Oracle:
    """Runs cases through a `Llama4ForCausalLM` with eager attention and a cache that keeps all."""

    def __init__(self, model: Llama4ForCausalLM) -> None:
        self.model = model

    @torch.no_grad()
    def run(self, case: Case) -> Iterator[StepValues]:
        """Feeds the steps of a case, fresh cache first, and yields the values of each."""
        cache = DynamicCache()
        for step in case.steps:
            with Hooks(self.model) as hooks:
                logits = self.forward(step, cache)
            shape = (step.batch, step.sequence, -1)
            values = {name: value.reshape(shape).float().numpy() for name, value in hooks.values.items()}
            values[LOGITS] = logits.numpy()
            yield StepValues(values)

    @torch.no_grad()
    def forward(self, step: Step, cache: DynamicCache) -> torch.Tensor:
        """One call of the model; the cache grows.

        Returns:
            float32 [batch, sequence, vocabulary].
        """
        output = self.model(
            input_ids=torch.from_numpy(step.input_ids),
            attention_mask=torch.from_numpy(step.attention_mask),
            position_ids=torch.from_numpy(step.position_ids),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits.float()

    @torch.no_grad()
    def next_token_log_probabilities(self, hidden: np.ndarray) -> np.ndarray:
        """What the model would predict if a layer's output were the last: final norm, head, log-softmax.

        Args:
            hidden: float32 [tokens, hidden].

        Returns:
            float32 [tokens, vocabulary].
        """
        states = torch.from_numpy(np.ascontiguousarray(hidden))
        logits = self.model.lm_head(self.model.model.norm(states))
        return torch.log_softmax(logits.float(), dim=-1).numpy()


class Hooks:
    """Reads the value of every probe while it is open."""

    def __init__(self, model: Llama4ForCausalLM) -> None:
        self.values: dict[str, torch.Tensor] = {}
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> "Hooks":
        self._watch(self._model.model.embed_tokens, EMBEDDING)
        for index, layer in enumerate(self._model.model.layers):
            self._watch(layer.input_layernorm, f"layers.{index}.attention_norm")
            self._watch(layer.self_attn, f"layers.{index}.attention", item=0)
            self._watch(layer.post_attention_layernorm, f"layers.{index}.feed_forward_norm")
            self._watch_input(layer.post_attention_layernorm, f"layers.{index}.attention_residual")
            if layer.is_moe_layer:
                block = layer.feed_forward
                self._watch(block.router, f"layers.{index}.router_logits", item=1)
                self._watch(block.experts, f"layers.{index}.experts", sum_of=block.num_experts)
                self._watch(block.shared_expert, f"layers.{index}.shared_expert")
            self._watch(
                layer.feed_forward, f"layers.{index}.feed_forward", item=0 if layer.is_moe_layer else None
            )
            self._watch(layer, f"layers.{index}.output")
        self._watch(self._model.model.norm, FINAL_NORM)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: torch.nn.Module, name: str, item: int | None = None, sum_of: int = 0) -> None:
        def read(_: torch.nn.Module, __: Any, output: Any) -> None:
            value = output if item is None else output[item]
            if sum_of:  # [experts * tokens, hidden], zero where an expert was not chosen
                self.values[name] = value.reshape(sum_of, -1, value.shape[-1]).sum(dim=0)
            else:  # a copy: the sum of experts is added in place to the shared expert's output
                self.values[name] = value.clone()

        self._handles.append(module.register_forward_hook(read))

    def _watch_input(self, module: torch.nn.Module, name: str) -> None:
        def read(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            self.values[name] = given[0].clone()

        self._handles.append(module.register_forward_pre_hook(read))
