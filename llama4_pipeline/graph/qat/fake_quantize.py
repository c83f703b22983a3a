"""Weights of a PyTorch model seen through the rounding of the graph: what `rtn` will store, with straight-through
gradients (Bengio et al., arXiv 1308.3432)."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import Llama4ForCausalLM

from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.llama4.architecture import LM_HEAD

_PACKED = re.compile(r"(?:q|k|v)_proj(?=\.weight$)"), re.compile(r"(?:gate|up)_proj(?=\.weight$)")


class FakeQuantize(nn.Module):
    """A weight as round to nearest stores it; gradients pass as if nothing had been rounded.

    Args:
        scheme: of the stored weight.
        inputs_last: whether the weight is [..., out, in]; else [..., in, out].
    """

    def __init__(self, scheme: Scheme, inputs_last: bool) -> None:
        super().__init__()
        self._scheme, self._inputs_last = scheme, inputs_last

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rows = weight if self._inputs_last else weight.transpose(-1, -2)
        with torch.no_grad():
            rounded = round_to_nearest(rows, self._scheme)
            rounded = rounded if self._inputs_last else rounded.transpose(-1, -2)
        return weight + (rounded - weight).detach()


def round_to_nearest(rows: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The numbers that `graph.quantize.rtn` makes of float32 rows [..., K], operation for operation."""
    inputs = rows.shape[-1]
    filled = F.pad(rows, (0, -inputs % scheme.block_size))
    blocks = filled.reshape(*rows.shape[:-1], -1, scheme.block_size)
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    step = (
        torch.where(high > -low, high, low) / -scheme.middle
        if scheme.symmetric
        else (high - low) / scheme.top
    )
    scale = step.to(getattr(torch, scheme.scale_dtype)).float()
    per_step = torch.where(scale == 0, 0.0, 1.0 / scale)
    zero = torch.full_like(scale, scheme.middle)
    if not scheme.symmetric:
        zero = (-low * per_step).round().clamp(0, scheme.top)
    codes = (blocks * per_step + zero).round().clamp(0, scheme.top)
    return ((codes - zero) * scale).flatten(-2)[..., :inputs]


@contextmanager
def fake_quantized(model: Llama4ForCausalLM, schemes: Mapping[str, Scheme]) -> Iterator[None]:
    """Gives every weight of the model that the graph stores in few bits its fake-quantized form in the `with` block.

    Args:
        model: float32; its parameters stay what they are and keep their gradients.
        schemes: by name of the graph's initializer.
    """
    found = [
        (module, name, schemes[stored], module.__class__.__name__ != "Llama4TextExperts")
        for path, module in model.named_modules()
        for name, _ in list(module.named_parameters(recurse=False))
        if (stored := initializer_name(f"{path}.{name}")) in schemes
    ]
    if model.config.tie_word_embeddings and LM_HEAD not in schemes:
        found.append((model.lm_head, "weight", schemes[initializer_name("model.embed_tokens.weight")], True))
    for module, name, scheme, inputs_last in found:
        parametrize.register_parametrization(module, name, FakeQuantize(scheme, inputs_last))
    try:
        yield
    finally:
        for module, name, _, _ in found:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def initializer_name(parameter: str) -> str:
    """The initializer of the exported graph that a parameter of transformers' model is part of."""
    for pattern, packed in zip(_PACKED, ("qkv_proj", "gate_up_proj"), strict=True):
        parameter = pattern.sub(packed, parameter)
    return parameter
