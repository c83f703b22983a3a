"""Attention calls to com.microsoft GroupQueryAttention: the cache in place, RoPE inside.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from llama4_pipeline.graph.fuse.rewriter import MICROSOFT, Rewriter
from llama4_pipeline.graph.fuse.rows import Rows

OPERATORS = ("NormalizedRotaryAttention", "RotaryAttention", "TemperedAttention", "PlainAttention")


def fuse_attention(rewriter: Rewriter, rows: Rows, max_context: int) -> int:
    """Replaces every attention call; returns how many.

    QK-norm is applied before the operator rotates: a norm without weight commutes with a rotation. The chunk mask is
    left out when `max_context` tokens never leave the first chunk. Tokens enter the graph with the real ones of each
    row first (`rows.py`).
    """
    calls = rewriter.calls(*OPERATORS)
    for call in calls:
        _fuse(rewriter, rows, call, max_context)
    _drop(rewriter, "CausalBias", "ChunkedCausalBias", "RotaryAngles", "AttentionTemperature")
    ids = rewriter.input("input_ids")
    for user, index in list(ids.uses()):
        if user.op_type == "Gather":
            user.replace_input_with(index, rows.in_order("input_ids"))
    return len(calls)


def _fuse(rewriter: Rewriter, rows: Rows, call: ir.Node, max_context: int) -> None:
    _qkv, past_key, past_value, bias = call.inputs[:4]
    heads, kv_heads = call.attributes["num_heads"].as_int(), call.attributes["kv_num_heads"].as_int()
    assert past_key is not None and past_key.shape is not None
    head_dim = past_key.shape[3]
    assert isinstance(head_dim, int)
    nodes = tape.Tape()
    query, key, value = _operands(rewriter, rows, nodes, call, heads, kv_heads, head_dim)
    rotary = "Rotary" in call.op_type
    cos, sin = _angle_table(rewriter, call, max_context) if rotary else (None, None)
    outputs = nodes.op_multi_out(
        "GroupQueryAttention",
        [
            query, key, value, past_key, past_value, rows.seqlens_k, rows.total_sequence_length,
            cos, sin, rows.in_order("position_ids") if rotary else None, _chunk_bias(rows, bias, max_context),
        ],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": call.attributes["scale"].as_float(),
            "do_rotary": int(rotary),
            "rotary_interleaved": int(rotary),
        },
        domain=MICROSOFT,
        num_outputs=3,
    )  # fmt: skip
    rewriter.replace(call, nodes, outputs)


def _operands(
    rewriter: Rewriter, rows: Rows, nodes: tape.Tape, call: ir.Node, heads: int, kv_heads: int, head_dim: int
) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Query, key, value; packed into the first alone where nothing stands between projection and attention."""
    qkv = call.inputs[0]
    width, kv_width = heads * head_dim, kv_heads * head_dim
    if call.op_type == "NormalizedRotaryAttention":
        both, value = nodes.op_multi_out(
            "Split", [qkv, rewriter.ints(width + kv_width, kv_width)], {"axis": -1}, num_outputs=2
        )
        by_head = nodes.op("Reshape", [both, rewriter.ints(0, 0, heads + kv_heads, head_dim)])
        ones = rewriter.constant(f"ones.{head_dim}", ir.tensor(np.ones(head_dim, np.float32)))
        epsilon = call.attributes["epsilon"].as_float()
        normed = nodes.op("RMSNormalization", [by_head, ones], {"axis": -1, "epsilon": epsilon})
        flat = nodes.op("Reshape", [normed, rewriter.ints(0, 0, width + kv_width)])
        query, key = nodes.op_multi_out(
            "Split", [flat, rewriter.ints(width, kv_width)], {"axis": -1}, num_outputs=2
        )
        return query, key, value
    if call.op_type == "TemperedAttention":
        widths = rewriter.ints(width, kv_width, kv_width)
        query, key, value = nodes.op_multi_out("Split", [qkv, widths], {"axis": -1}, num_outputs=3)
        return nodes.op("Mul", [query, _temperature(rewriter, rows, call)]), key, value
    return qkv, None, None


def _angle_table(rewriter: Rewriter, call: ir.Node, max_context: int) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine of every position below `max_context`, float32 [max_context, D / 2]."""
    cos = call.inputs[4]
    assert cos is not None
    angles = cos.producer()
    assert angles is not None and angles.inputs[1] is not None and angles.inputs[1].const_value is not None
    frequencies = angles.inputs[1].const_value.numpy().astype(np.float32)
    scaling = angles.attributes["scaling"].as_float()

    def table(function: np.ufunc) -> ir.TensorProtocol:
        positions = np.arange(max_context, dtype=np.float32)[:, None]
        exact = (positions * frequencies).astype(np.float64)
        return ir.tensor((function(exact) * scaling).astype(np.float32))

    return rewriter.constant("rotary.cos", table(np.cos)), rewriter.constant("rotary.sin", table(np.sin))


def _temperature(rewriter: Rewriter, rows: Rows, call: ir.Node) -> ir.Value:
    """Scale of each query, float32 [B, S, 1]; `AttentionTemperature` over the ordered rows."""
    source = call.inputs[4]
    assert source is not None
    node = source.producer()
    assert node is not None
    floor_scale, attn_scale = (
        node.attributes["floor_scale"].as_float(),
        node.attributes["attn_scale"].as_float(),
    )

    def make() -> ir.Value:
        op, one = rewriter.preamble.op, rewriter.constant("temperature.one", ir.tensor(1.0))
        slots = op("Cast", [rows.query_slots], {"to": ir.DataType.FLOAT})
        floor = rewriter.constant("temperature.floor_scale", ir.tensor(floor_scale))
        steps = op("Floor", [op("Div", [op("Add", [slots, one]), floor])])
        scale = rewriter.constant("temperature.attn_scale", ir.tensor(attn_scale))
        curve = op("Add", [op("Mul", [op("Log", [op("Add", [steps, one])]), scale]), one])
        return op("Unsqueeze", [curve, rewriter.ints(2)])

    return rewriter.once("temperature", make)


def _chunk_bias(rows: Rows, bias: ir.Value | None, max_context: int) -> ir.Value | None:
    assert bias is not None
    node = bias.producer()
    assert node is not None
    if node.op_type != "ChunkedCausalBias" or node.attributes["chunk_size"].as_int() >= max_context:
        return None
    return rows.chunk_bias(node.attributes["chunk_size"].as_int())


def _drop(rewriter: Rewriter, *operators: str) -> None:
    """Removes the calls that only fed the attention; one that something else still reads stays and is reported."""
    for call in rewriter.calls(*operators):
        if not any(output.uses() for output in call.outputs):
            rewriter.graph.remove(call, safe=True)
