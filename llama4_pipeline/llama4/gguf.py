"""Writes a checkpoint as a GGUF file, so that llama.cpp runs the same weights.

The file holds token ids only, no tokenizer.
"""

import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.llamacpp_form import LlamaCppForm, find_form
from llama4_pipeline.llama4.weights import iterate_rows, require_finite, require_float16_range
from llama4_pipeline.metadata import GGUF_CONFIG_KEY
from llama4_pipeline.progress import Progress
from llama4_pipeline.units import format_bytes

if TYPE_CHECKING:
    from llama4_pipeline.llama4.checkpoint import Checkpoint

ENCODINGS = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
# Of the encodings that hold a float16, each weight or the scale of a block.
_LARGEST_CODES = {
    gguf.GGMLQuantizationType.F16: 1,
    gguf.GGMLQuantizationType.Q8_0: 127,
    gguf.GGMLQuantizationType.Q4_0: 8,
}


def write_gguf(checkpoint: "Checkpoint", out: Path, encoding: str, max_context: int) -> None:
    """Writes a GGUF file piece by piece; one expert, or some rows of a matrix, are in memory at a time.

    Every matrix is stored in the encoding, embedding and output projection too (what llama.cpp calls pure); norms and
    routers stay in float32, as llama.cpp's own converter leaves them.

    Args:
        checkpoint: an opened checkpoint.
        out: the file; it appears when it is whole.
        encoding: a key of `ENCODINGS`.
        max_context: tokens that the file promises to serve.

    Raises:
        InputError: llama.cpp would compute another function, or a width is no multiple of the encoding's block.
    """
    form = find_form(checkpoint, max_context)
    tensors = list(_tensors(checkpoint, form))
    full, stored = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType[encoding.upper()]
    kinds = [full if tensor.stays_float32 else stored for tensor in tensors]
    partial_file = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    writer = gguf.GGUFWriter(partial_file, gguf.MODEL_ARCH_NAMES[form.arch])
    writer.add_file_type(ENCODINGS[encoding])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, checkpoint, form, max_context)
    for tensor, kind in zip(tensors, kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if tensor.shape[-1] % block:
            raise InputError(
                f"{tensor.name} is {tensor.shape[-1]} wide, no multiple of the {block} weights that share a scale in "
                f"{encoding}; write f16 or f32"
            )
        width = tensor.shape[-1] // block * size
        dtype = np.dtype(np.uint8)
        writer.add_tensor_info(
            tensor.name, (*tensor.shape[:-1], width), dtype, math.prod(tensor.shape[:-1]) * width, kind
        )
    size = sum(info.nbytes for info in writer.tensors[0].values())
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise InputError(
            f"{out} takes {format_bytes(size)}, {format_bytes(free)} are free; name another place"
        )
    try:
        _write(writer, tensors, kinds)
        partial_file.rename(out)
    finally:
        partial_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file, its rows from first to last in pieces."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]
    stays_float32: bool


def _describe(
    writer: gguf.GGUFWriter, checkpoint: "Checkpoint", form: LlamaCppForm, max_context: int
) -> None:
    architecture = checkpoint.architecture
    widths = {layer.is_moe: layer.intermediate_size for layer in architecture.layers}
    writer.add_context_length(max_context)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_block_count(len(architecture.layers))
    writer.add_feed_forward_length(widths.get(False, widths.get(True, 0)))
    writer.add_head_count(architecture.num_attention_heads)
    writer.add_head_count_kv(architecture.num_key_value_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_rope_dimension_count(architecture.head_dim)
    writer.add_rope_freq_base(form.theta)
    writer.add_layer_norm_rms_eps(architecture.rms_norm_eps)
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_string(GGUF_CONFIG_KEY, json.dumps(dict(checkpoint.text_config)))
    if form.experts:
        writer.add_expert_count(form.experts)
        writer.add_expert_used_count(architecture.experts_per_token)
        writer.add_expert_feed_forward_length(widths.get(True, widths.get(False, 0)))
        writer.add_interleave_moe_layer_step(form.moe_step)


def _tensors(checkpoint: "Checkpoint", form: LlamaCppForm) -> Iterator[_Tensor]:
    """The tensors in the order of the model."""
    weights, architecture = checkpoint.weights, checkpoint.architecture
    names = gguf.get_tensor_name_map(form.arch, len(architecture.layers))

    def named(name: str, **fields: Any) -> _Tensor:
        found = names.get_name(name.removesuffix(".weight"))
        assert found is not None
        return _Tensor(f"{found}.weight", **fields)

    if form.rope_factors is not None:
        factors = form.rope_factors
        yield _Tensor("rope_freqs.weight", factors.shape, lambda: iter([factors]), stays_float32=True)
    for name in weights.names():
        shape = weights.shape(name)
        if len(shape) == 3:
            experts, inputs, outputs = shape
            halves = ("gate_proj", "up_proj") if "gate_up_proj" in name else ("down_proj",)
            rows = outputs // len(halves)
            for number, half in enumerate(halves):
                yield named(
                    f"{name.rpartition('.')[0]}.{half}",
                    shape=(experts, rows, inputs),
                    pieces=partial(_experts, checkpoint, name, slice(number * rows, (number + 1) * rows)),
                    stays_float32=False,
                )
            continue
        pieces = partial(iterate_rows, weights, name)
        if form.rotates_halves and (".q_proj." in name or ".k_proj." in name):
            pieces = partial(_halves, checkpoint, name)
        yield named(
            name, shape=shape, pieces=pieces, stays_float32=len(shape) == 1 or name.endswith("router.weight")
        )
        if form.rotates_halves and (".q_proj." in name or ".k_proj." in name):
            ones = np.ones(architecture.head_dim, np.float32)
            norm = name.replace("_proj.", "_norm.")
            yield named(norm, shape=ones.shape, pieces=lambda ones=ones: iter([ones]), stays_float32=True)


def _experts(checkpoint: "Checkpoint", name: str, columns: slice) -> Iterator[np.ndarray]:
    """Each expert of a stack [experts, in, out] as [out, in], of its columns the given ones."""
    for expert in range(checkpoint.weights.shape(name)[0]):
        yield checkpoint.weights.read(name, slice(expert, expert + 1))[0].T[columns]


def _halves(checkpoint: "Checkpoint", name: str) -> Iterator[np.ndarray]:
    """A projection head by head, the rows that were first of their pair before the rows that were second."""
    width = checkpoint.architecture.head_dim
    for first in range(0, checkpoint.weights.shape(name)[0], width):
        head = checkpoint.weights.read(name, slice(first, first + width))
        yield np.concatenate([head[0::2], head[1::2]])


def _write(writer: gguf.GGUFWriter, tensors: list[_Tensor], kinds: list[gguf.GGMLQuantizationType]) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    try:
        writer.write_padding(file, file.tell())
        with Progress("write GGUF", total=len(tensors), unit="tensors") as progress:
            for tensor, kind in zip(tensors, kinds, strict=True):
                for piece in tensor.pieces():
                    values = np.ascontiguousarray(piece, dtype=np.float32)
                    if kind in _LARGEST_CODES:
                        require_float16_range(values, tensor.name, "write f32", _LARGEST_CODES[kind])
                    else:
                        require_finite(values, tensor.name)
                    file.write(gguf.quantize(values, kind).data)
                writer.write_padding(file, file.tell())
                progress.advance()
    finally:
        writer.close()
