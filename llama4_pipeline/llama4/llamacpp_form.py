"""Which of llama.cpp's forms computes a Llama 4, if any.

llama.cpp has much of Llama 4 hard-coded; a model that it would compute differently is refused, and the message names
the key of config.json. What cannot be seen within `max_context` tokens does not count. Two of its forms are used:

- `llama4`: RoPE but in every fourth layer, chunks of 8192, an attention temperature that steps every 8192 tokens.
- `hunyuan-dense`: a dense model with RoPE in every layer, for which `llama4` has no form (with `sliding_window` 0 it
  leaves the last layer without rotation). Its QK norm stands behind the rotation too, and has weights, which are one
  here. It rotates the two halves of a head instead of neighboring pairs, so rows of the projections are reordered.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

# What llama.cpp computes whatever the file says (src/models/llama4.cpp).
_NOPE_STEP = 4
_CHUNK = 8192
_TEMPERATURE = (8192, 0.1)
_EXPERTS_WITHOUT_QK_NORM = 128
_EXPERTS_WITH_QK_NORM = 16  # any other number


@dataclass(frozen=True)
class LlamaCppForm:
    """How a model stands in a GGUF file.

    Attributes:
        arch: llama.cpp's name of the form.
        theta: base of the rotary frequencies.
        moe_step: experts are in every n-th layer; 0 in none.
        experts: number that the file states.
        rope_factors: what divides the default frequencies, float32 [head_dim / 2]; None where nothing does.
    """

    arch: gguf.MODEL_ARCH
    theta: float
    moe_step: int = 0
    experts: int = 0
    rope_factors: np.ndarray | None = None

    @property
    def rotates_halves(self) -> bool:
        """Whether rotation pairs the two halves of a head, not neighbors."""
        return self.arch is gguf.MODEL_ARCH.HUNYUAN_DENSE


def find_form(checkpoint: "Checkpoint", max_context: int) -> LlamaCppForm:
    """The form in which llama.cpp computes a model.

    Args:
        checkpoint: an opened checkpoint.
        max_context: tokens within which it must be the same function.

    Raises:
        InputError: there is none; the message names the key of config.json.
    """
    architecture = checkpoint.architecture
    if architecture.attention_bias:
        raise _cannot("attention_bias", "has projections without bias only")
    if max_context > architecture.max_position_embeddings:
        raise InputError(
            f"max context {max_context} is beyond max_position_embeddings ({architecture.max_position_embeddings})"
        )
    factors = _rope_factors(checkpoint, max_context)
    layers = architecture.layers
    if all(layer.uses_rope and layer.qk_norm and not layer.is_moe for layer in layers):
        if any(_chunk(layer.chunk_size, max_context) for layer in layers):
            raise _cannot("attention_chunk_size", "has no chunks without NoPE layers; ask for less context")
        if factors is not None:
            raise _cannot(
                "rope_parameters", "has the default frequencies only, in a model without NoPE layers"
            )
        return LlamaCppForm(gguf.MODEL_ARCH.HUNYUAN_DENSE, _theta(checkpoint))
    _check_positions(architecture, max_context)
    if len(layers) < _NOPE_STEP:
        raise _cannot("num_hidden_layers", f"aborts at the first token of fewer than {_NOPE_STEP} layers")
    experts = max(layer.experts for layer in layers)
    normed = any(layer.qk_norm for layer in layers)
    if experts and normed == (experts == _EXPERTS_WITHOUT_QK_NORM):
        raise _cannot(
            "use_qk_norm",
            f"leaves the norm out of models with {_EXPERTS_WITHOUT_QK_NORM} experts, and of no other",
        )
    if not experts:
        # llama.cpp refuses none; where no layer has experts, their number decides on the norm alone.
        experts = _EXPERTS_WITH_QK_NORM if normed else _EXPERTS_WITHOUT_QK_NORM
    return LlamaCppForm(gguf.MODEL_ARCH.LLAMA4, _theta(checkpoint), _moe_step(architecture), experts, factors)


def _check_positions(architecture: Architecture, max_context: int) -> None:
    """NoPE layers, chunks and temperature, as far as they show within the context."""
    for layer in architecture.layers:
        rotates = (layer.index + 1) % _NOPE_STEP != 0
        if layer.uses_rope != rotates:
            raise _cannot("no_rope_layers", f"rotates in every layer but each {_NOPE_STEP}th")
        chunk = _chunk(layer.chunk_size, max_context)
        if chunk != _chunk(_CHUNK if rotates else None, max_context):
            raise _cannot("attention_chunk_size", f"has chunks of {_CHUNK} in RoPE layers, and no others")
        tuning = (architecture.floor_scale, architecture.attn_scale) if layer.temperature_tuning else None
        if not rotates and _visible(tuning, max_context) != _visible(_TEMPERATURE, max_context):
            steps, scale = _TEMPERATURE
            raise _cannot(
                "floor_scale", f"has the temperature with floor_scale {steps} and attn_scale {scale}"
            )


def _chunk(size: int | None, max_context: int) -> int | None:
    return size if size is not None and size < max_context else None


def _visible(tuning: tuple[int, float] | None, max_context: int) -> tuple[int, float] | None:
    return tuning if tuning and tuning[1] and tuning[0] <= max_context else None


def _moe_step(architecture: Architecture) -> int:
    moe = [layer.index for layer in architecture.layers if layer.is_moe]
    if not moe:
        return 0
    step = moe[0] + 1
    if moe != list(range(step - 1, len(architecture.layers), step)):
        raise _cannot("moe_layers", "has experts in every n-th layer; this list has another rhythm")
    return step


def _rope_factors(checkpoint: "Checkpoint", max_context: int) -> np.ndarray | None:
    rope: dict[str, Any] = dict(checkpoint.config.rope_parameters or {})
    if rope.get("rope_type") == "longrope" and max_context > rope["original_max_position_embeddings"]:
        raise _cannot("rope_parameters", "has one set of frequencies; longrope has others for longer texts")
    frequencies, scaling = checkpoint.rotary_frequencies()
    if scaling != 1.0:
        raise _cannot(
            "rope_parameters", "is given frequencies; a factor on cosine and sine has no place there"
        )
    width = checkpoint.architecture.head_dim
    default = _theta(checkpoint) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    factors = default / frequencies.double().numpy()
    return None if np.allclose(factors, 1.0, rtol=1e-5) else factors.astype(np.float32)


def _theta(checkpoint: "Checkpoint") -> float:
    parameters: dict[str, Any] = dict(checkpoint.config.rope_parameters or {})
    return float(parameters["rope_theta"])


def _cannot(key: str, what: str) -> InputError:
    return InputError(f"config key {key}: llama.cpp cannot represent this model: it {what}")
