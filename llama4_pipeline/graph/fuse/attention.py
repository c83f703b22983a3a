"""Attention calls to com.microsoft GroupQueryAttention, the cache in place.

RotaryEmbedding and BranchwiseRMSNorm stand before it. GroupQueryAttention can rotate too, but reads a prompt's
positions as a count from the first, and then refuses head sizes that are no multiple of 16; it can norm query and key
too, but not on a CPU. Queries come scaled: where its own scale is 1, a CPU has a kernel for one query that needs no
packed copy of the keys.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.fuse.rewriter import Rewriter
from llama4_pipeline.graph.fuse.rows import Rows
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor
from llama4_pipeline.metadata import CHUNK_SIZE_KEY

_HEAD_MULTIPLE = 8
_RUN = 4096  # positions of a table that are in memory at a time
_OPERATORS = ("NormalizedRotaryAttention", "RotaryAttention", "TemperedAttention", "PlainAttention")


def fuse_attention(rewriter: Rewriter, rows: Rows, max_context: int) -> int:
    """Replaces every attention call; returns how many.

    A chunked layer gets a cache of one chunk, which begins anew with each, unless `max_context` tokens never leave the
    first; the temperature is left out when they never leave its first step. Tokens enter the graph with the real ones
    of each row first (`rows.py`).
    """
    calls = rewriter.calls(*_OPERATORS)
    for call in calls:
        _fuse(rewriter, rows, call, max_context)
    _drop(rewriter, "CausalBias", "ChunkedCausalBias", "RotaryAngles", "AttentionTemperature")
    ids = rewriter.input("input_ids")
    for user, index in list(ids.uses()):
        if user.op_type == "Gather":
            user.replace_input_with(index, rows.in_order("input_ids"))
    return len(calls)


@dataclass(frozen=True)
class _Call:
    """An attention call, and what it says of its heads."""

    node: ir.Node
    heads: int
    kv_heads: int
    head_dim: int
    scale: float

    @classmethod
    def of(cls, node: ir.Node) -> Self:
        """Reads a call of one of `_OPERATORS`.

        Raises:
            InputError: a head size that the kernel refuses.
        """
        past_key = node.inputs[1]
        assert past_key is not None and past_key.shape is not None
        head_dim = past_key.shape[3]
        assert isinstance(head_dim, int)
        if head_dim % _HEAD_MULTIPLE:
            raise InputError(
                f"head_dim {head_dim}: ONNX Runtime's GroupQueryAttention takes multiples of {_HEAD_MULTIPLE}; "
                "use the portable form"
            )
        heads, kv_heads = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
        return cls(node, heads, kv_heads, head_dim, node.attributes["scale"].as_float())

    @property
    def width(self) -> int:
        """Of the queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of its keys, and of its values."""
        return self.kv_heads * self.head_dim


def _fuse(rewriter: Rewriter, rows: Rows, node: ir.Node, max_context: int) -> None:
    call, nodes = _Call.of(node), tape.Tape()
    past_key, past_value, bias = node.inputs[1:4]
    make = _rotated if "Rotary" in node.op_type else _plain
    query, key, value = make(rewriter, rows, nodes, call, max_context)
    chunk_size = _chunk_size(bias, max_context)
    if chunk_size is None:
        seqlens_k, total = rows.seqlens_k, rows.total_sequence_length
    else:
        seqlens_k, total = rows.seqlens_in_chunk(chunk_size), rows.total_in_chunk(chunk_size)
        rewriter.model.metadata_props[CHUNK_SIZE_KEY] = str(chunk_size)
        for cached in (past_key, past_value, *node.outputs[1:]):
            assert cached is not None and cached.shape is not None
            cached.shape = ir.Shape([*cached.shape[:2], "chunk", call.head_dim])
    outputs = nodes.op_multi_out(
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, seqlens_k, total],
        {"num_heads": call.heads, "kv_num_heads": call.kv_heads, "scale": 1.0},
        domain=MICROSOFT,
        num_outputs=3,
    )
    rewriter.replace(node, nodes, outputs)


def _rotated(
    rewriter: Rewriter, rows: Rows, nodes: tape.Tape, call: _Call, max_context: int
) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Query, key, value of a RoPE layer: query and key are turned, and normed, as one.

    Both are scaled by the scale's root: by the norm's weights, or by the angles where there is no norm. With weights of
    their own for each head, the norm by itself takes twenty times as long for a token and five times for a prompt.
    """
    normed, root = call.node.op_type == "NormalizedRotaryAttention", math.sqrt(call.scale)
    width, kv_width, turned_heads = call.width, call.kv_width, call.heads + call.kv_heads
    both, value = nodes.op_multi_out(
        "Split",
        [call.node.inputs[0], rewriter.ints(width + kv_width, kv_width)],
        {"axis": -1},
        num_outputs=2,
    )
    angles = _angle_table(rewriter, call.node, max_context, 1.0 if normed else root)
    turned = nodes.op(
        "RotaryEmbedding",
        [both, rows.in_order("position_ids"), *angles],
        {"interleaved": 1, "num_heads": turned_heads},
        domain=MICROSOFT,
    )
    if normed:
        roots = ir.tensor(np.full(call.head_dim, root, np.float32))
        weights = rewriter.constant(f"query_key_norm.{call.head_dim}", roots)
        epsilon = call.node.attributes["epsilon"].as_float()
        turned = nodes.op(
            "BranchwiseRMSNorm",
            [turned, weights],
            {"num_branches": turned_heads, "epsilon": epsilon},
            domain=MICROSOFT,
        )
    query, key = nodes.op_multi_out(
        "Split", [turned, rewriter.ints(width, kv_width)], {"axis": -1}, num_outputs=2
    )
    return query, key, value


def _plain(
    rewriter: Rewriter, rows: Rows, nodes: tape.Tape, call: _Call, max_context: int
) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Query, key, value of a NoPE layer; packed into the first alone where there is no temperature."""
    qkv, width, kv_width = call.node.inputs[0], call.width, call.kv_width
    temperature = _temperature(rewriter, rows, call, max_context)
    if temperature is None:
        factors = np.repeat(np.array([call.scale, 1], np.float32), (width, 2 * kv_width))
        factor = rewriter.constant(f"query_scale.{width}.{kv_width}", ir.tensor(factors))
        return nodes.op("Mul", [qkv, factor]), None, None
    widths = rewriter.ints(width, kv_width, kv_width)
    query, key, value = nodes.op_multi_out("Split", [qkv, widths], {"axis": -1}, num_outputs=3)
    return nodes.op("Mul", [query, temperature]), key, value


def _angle_table(
    rewriter: Rewriter, call: ir.Node, max_context: int, factor: float
) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine of every position below `max_context` times `factor`, float32 [max_context, D / 2]."""
    cos = call.inputs[4]
    assert cos is not None
    angles = cos.producer()
    assert angles is not None and angles.inputs[1] is not None and angles.inputs[1].const_value is not None
    frequencies = angles.inputs[1].const_value.numpy().astype(np.float32)
    scaling = angles.attributes["scaling"].as_float() * factor

    def table(name: str, function: np.ufunc) -> ir.Value:
        def compute(positions: np.ndarray) -> np.ndarray:
            exact = (positions[:, None] * frequencies).astype(np.float64)
            return function(exact) * scaling

        return rewriter.constant(name, _table(name, (max_context, len(frequencies)), compute))

    return table("rotary.cos", np.cos), table("rotary.sin", np.sin)


def _table(
    name: str, shape: tuple[int, ...], compute: Callable[[np.ndarray], np.ndarray]
) -> ir.TensorProtocol:
    """A float32 row for each position; where they are many, computed while they are written.

    Args:
        name: of the initializer.
        shape: of the table, positions first.
        compute: makes the rows of positions float32 [n].
    """

    def runs() -> Iterator[np.ndarray]:
        for first in range(0, shape[0], _RUN):
            yield compute(np.arange(first, min(first + _RUN, shape[0])).astype(np.float32))

    table = PiecewiseTensor(name, ir.DataType.FLOAT, shape, runs)
    return table if shape[0] > _RUN else ir.tensor(table.numpy())


def _temperature(rewriter: Rewriter, rows: Rows, call: _Call, max_context: int) -> ir.Value | None:
    """The scale times each query's temperature, float32 [B, S, 1], by its slot; None where every temperature is 1."""
    if call.node.op_type != "TemperedAttention":
        return None
    source = call.node.inputs[4]
    assert source is not None
    node = source.producer()
    assert node is not None
    floor_scale, attn_scale = (
        node.attributes["floor_scale"].as_float(),
        node.attributes["attn_scale"].as_float(),
    )
    if max_context < floor_scale:
        return None

    def compute(positions: np.ndarray) -> np.ndarray:
        steps = np.floor((positions + 1) / np.float32(floor_scale))
        return (np.log(steps + 1) * np.float32(attn_scale) + 1) * call.scale

    def make() -> ir.Value:
        name = "attention.temperature"
        table = rewriter.constant(name, _table(name, (max_context,), compute))
        scales = rewriter.preamble.op("Gather", [table, rows.query_slots])
        return rewriter.preamble.op("Unsqueeze", [scales, rewriter.ints(2)])

    return rewriter.once("temperature", make)


def _chunk_size(bias: ir.Value | None, max_context: int) -> int | None:
    """Of the layer whose mask it is; None where `max_context` tokens never leave the first chunk."""
    assert bias is not None
    node = bias.producer()
    assert node is not None
    if node.op_type != "ChunkedCausalBias" or node.attributes["chunk_size"].as_int() >= max_context:
        return None
    return node.attributes["chunk_size"].as_int()


def _drop(rewriter: Rewriter, *operators: str) -> None:
    """Removes the calls that only fed the attention; one that something else still reads stays and is reported."""
    for call in rewriter.calls(*operators):
        if not any(output.uses() for output in call.outputs):
            rewriter.graph.remove(call, safe=True)
