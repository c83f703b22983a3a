"""The mistakes that ports of Llama 4 made, each planted into one layer of a right graph."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper
from onnxscript import opset18 as op
from onnxscript import script, values

from llama4_pipeline.graph.functions import DOMAIN

_llama4 = values.Opset(DOMAIN, 1)
Plant = Callable[[onnx.ModelProto, int], None]


@dataclass(frozen=True)
class Fault:
    """A mistake, and where and as what the validation must report it."""

    name: str
    plant: Plant
    block: str
    cause: str


def planted(graph: Path, out: Path, fault: Fault, layer: int) -> Path:
    """A copy of a graph directory with a fault in one layer; the weights are shared."""
    model = onnx.load(graph / "model.onnx", load_external_data=False)
    fault.plant(model, layer)
    out.mkdir()
    onnx.save(model, out / "model.onnx")
    for data in graph.glob("model.onnx.data*"):
        os.link(data, out / data.name)
    return out


@script(_llama4, default_opset=op)
def ExpertsWithScaledOutput(hidden, router_logits, gate_up, down, experts_per_token: int):  # noqa: N802
    weight = op.Sigmoid(op.ReduceMax(router_logits, op.Constant(value_ints=[-1]), keepdims=1))
    unscaled = hidden / weight  # the right function scales its input
    routed = _llama4.MixtureOfExperts(
        unscaled, router_logits, gate_up, down, experts_per_token=experts_per_token
    )
    return routed * weight


@script(_llama4, default_opset=op)
def ExpertsWithSwappedGate(hidden, router_logits, gate_up, down, experts_per_token: int):  # noqa: N802
    shape = op.Shape(gate_up)
    pairs = op.Reshape(
        gate_up, op.Concat(op.Slice(shape, [0], [1]), [-1, 2], op.Slice(shape, [2], [3]), axis=0)
    )
    gate, up = op.Split(pairs, axis=2, num_outputs=2)
    swapped = op.Reshape(op.Concat(up, gate, axis=2), shape)
    return _llama4.MixtureOfExperts(hidden, router_logits, swapped, down, experts_per_token=experts_per_token)


@script(_llama4, default_opset=op)
def SwiGLUWithSwappedGate(gate_up):  # noqa: N802
    gate, up = op.Split(gate_up, axis=-1, num_outputs=2)
    return up * op.Sigmoid(up) * gate


@script(_llama4, default_opset=op)
def RotateHalves(x, cos, sin):  # noqa: N802
    a, b = op.Split(x, axis=-1, num_outputs=2)
    c = op.Unsqueeze(cos, op.Constant(value_ints=[2]))
    s = op.Unsqueeze(sin, op.Constant(value_ints=[2]))
    return op.Concat(a * c - b * s, b * c + a * s, axis=-1)


@script(_llama4, default_opset=op)
def AttentionThatRotatesHalves(  # noqa: N802
    qkv, past_key, past_value, bias, cos, sin, num_heads: int, kv_num_heads: int, scale: float, epsilon: float
):
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    normed_query = _llama4.L2Normalization(_llama4.RotateHalves(query, cos, sin), epsilon=epsilon)
    normed_key = _llama4.L2Normalization(_llama4.RotateHalves(key, cos, sin), epsilon=epsilon)
    attended, present_key, present_value = _llama4.CachedAttention(
        normed_query, normed_key, value, past_key, past_value, bias,
        num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale,
    )  # fmt: skip
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def TemperedRotaryAttention(  # noqa: N802
    qkv, past_key, past_value, bias, cos, sin, temperature,
    num_heads: int, kv_num_heads: int, scale: float, epsilon: float,
):  # fmt: skip
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    normed_query = _llama4.L2Normalization(_llama4.Rotate(query, cos, sin), epsilon=epsilon)
    normed_key = _llama4.L2Normalization(_llama4.Rotate(key, cos, sin), epsilon=epsilon)
    tempered = normed_query * op.Unsqueeze(temperature, op.Constant(value_ints=[2]))
    attended, present_key, present_value = _llama4.CachedAttention(
        tempered, normed_key, value, past_key, past_value, bias,
        num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale,
    )  # fmt: skip
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def AttentionWithStridedGroups(  # noqa: N802
    qkv, past_key, past_value, bias, cos, sin, num_heads: int, kv_num_heads: int, scale: float, epsilon: float
):
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    normed_query = _llama4.L2Normalization(_llama4.Rotate(query, cos, sin), epsilon=epsilon)
    normed_key = _llama4.L2Normalization(_llama4.Rotate(key, cos, sin), epsilon=epsilon)
    # Query head h meets key head h % K: order the heads so that those of one key head are neighbors, and back.
    k = _llama4.AsList(count=kv_num_heads)
    by_group = op.Concat(
        op.Constant(value_ints=[0, 0, -1]), k, op.Slice(op.Shape(normed_query), [3], [4]), axis=0
    )
    grouped = op.Transpose(op.Reshape(normed_query, by_group), perm=[0, 1, 3, 2, 4])
    ordered = op.Reshape(grouped, op.Shape(normed_query))
    mixed, present_key, present_value = _llama4.CachedAttention(
        ordered, normed_key, value, past_key, past_value, bias,
        num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale,
    )  # fmt: skip
    back = op.Transpose(op.Reshape(mixed, op.Shape(grouped)), perm=[0, 1, 3, 2, 4])
    attended = op.Reshape(back, op.Constant(value_ints=[0, 0, -1]))
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def SlidingCausalBias(input_ids, attention_mask, window: int):  # noqa: N802
    kv = _llama4.Slots(attention_mask)
    query = _llama4.QuerySlots(input_ids, attention_mask)
    near = op.Less(query - kv, op.Constant(value_int=window))
    real = op.Unsqueeze(op.Cast(attention_mask, to=9), op.Constant(value_ints=[1, 2]))
    return op.Where(op.And(op.And(op.LessOrEqual(kv, query), near), real), 0.0, -30000.0)


def _call_instead(model: onnx.ModelProto, node: onnx.NodeProto, *functions: values.OnnxFunction) -> None:
    """Makes a node call the first of these functions, which the model is given."""
    node.op_type = functions[0].name
    _attach(model, *functions)


def _attach(model: onnx.ModelProto, *functions: values.OnnxFunction) -> None:
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    for function in functions:
        proto = function.to_function_proto()
        for entry in proto.opset_import:
            if entry.domain == "":
                entry.version = opset
        model.functions.append(proto)


def _node(model: onnx.ModelProto, layer: int, kinds: tuple[str, ...]) -> onnx.NodeProto:
    """The node of one of these kinds in a layer: there is at most one of each in front of its output."""
    end = next(
        place for place, node in enumerate(model.graph.node) if f"layers.{layer}.output" in node.output
    )
    return [node for node in model.graph.node[:end] if node.op_type in kinds][-1]


_NOPE_LAYER = 3  # of the checkpoint that the faults are planted in
_ATTENTION = ("NormalizedRotaryAttention", "TemperedAttention")


def _set_attribute(node: onnx.NodeProto, name: str, value: int | float) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _move_router_weight(model: onnx.ModelProto, layer: int) -> None:
    _call_instead(model, _node(model, layer, ("MixtureOfExperts",)), ExpertsWithScaledOutput)


def _swap_gate_of_experts(model: onnx.ModelProto, layer: int) -> None:
    _call_instead(model, _node(model, layer, ("MixtureOfExperts",)), ExpertsWithSwappedGate)


def _swap_gate_of_shared_expert(model: onnx.ModelProto, layer: int) -> None:
    _call_instead(model, _node(model, layer, ("SwiGLU",)), SwiGLUWithSwappedGate)


def _rotate_halves(model: onnx.ModelProto, layer: int) -> None:
    _call_instead(model, _node(model, layer, _ATTENTION), AttentionThatRotatesHalves, RotateHalves)


def _slide(model: onnx.ModelProto, layer: int) -> None:
    chunked = next(node for node in model.graph.node if node.op_type == "ChunkedCausalBias")
    size = next(attribute.i for attribute in chunked.attribute if attribute.name == "chunk_size")
    bias = helper.make_node("SlidingCausalBias", chunked.input, ["sliding"], domain=DOMAIN, window=size)
    _node(model, layer, _ATTENTION).input[3] = "sliding"
    model.graph.node.insert(0, bias)
    _attach(model, SlidingCausalBias)


def _lose_scale(model: onnx.ModelProto, layer: int) -> None:
    _set_attribute(_node(model, layer, _ATTENTION), "scale", 1.0)


def _temper_rope_layer(model: onnx.ModelProto, layer: int) -> None:
    tempered = next(node for node in model.graph.node if node.op_type == "AttentionTemperature")
    attention = _node(model, layer, _ATTENTION)
    attention.input.append(tempered.output[0])
    _call_instead(model, attention, TemperedRotaryAttention)


def _stride_groups(model: onnx.ModelProto, layer: int) -> None:
    _call_instead(model, _node(model, layer, _ATTENTION), AttentionWithStridedGroups)


PORTABLE = (
    Fault(
        "router weight moved to the output",
        _move_router_weight,
        "experts",
        "the router weight scales the output of the expert and not its input",
    ),
    Fault("gate and up swapped", _swap_gate_of_experts, "experts", "gate and up are swapped"),
    Fault(
        "gate and up of the shared expert swapped",
        _swap_gate_of_shared_expert,
        "shared_expert",
        "gate and up are swapped",
    ),
    Fault("half rotation", _rotate_halves, "attention", "RoPE rotates halves and not neighboring pairs"),
    Fault("sliding window for chunk", _slide, "attention", "attention slides where it should be chunked"),
    Fault("QK norm before a missing scale", _lose_scale, "attention", "the attention scale is missing"),
    Fault(
        "temperature on a RoPE layer",
        _temper_rope_layer,
        "attention",
        "temperature tuning is applied on a RoPE layer",
    ),
    Fault(
        "wrong KV head grouping",
        _stride_groups,
        "attention",
        "query heads are grouped with the wrong key heads",
    ),
)


def _interleaved_off(model: onnx.ModelProto, layer: int) -> None:
    _set_attribute(_node(model, layer, ("RotaryEmbedding",)), "interleaved", 0)


def _softmax_weight(model: onnx.ModelProto, layer: int) -> None:
    _set_attribute(_node(model, layer, ("MoE",)), "normalize_routing_weights", 0)


def _lose_fused_scale(model: onnx.ModelProto, layer: int) -> None:
    _set_attribute(_node(model, layer, ("GroupQueryAttention",)), "scale", 4.0)  # undoes that of the queries


def _lose_chunks(model: onnx.ModelProto, layer: int) -> None:
    """The layer looks at as many cached tokens as the one that sees all of them, and keeps as many."""
    everything = _node(model, _NOPE_LAYER, ("GroupQueryAttention",))
    _node(model, layer, ("GroupQueryAttention",)).input[5:7] = everything.input[5:7]
    for value in model.graph.input:
        if value.name.startswith(f"past_key_values.{layer}."):
            value.type.tensor_type.shape.dim[2].dim_param = "past_sequence"


def _slide_fused(model: onnx.ModelProto, layer: int) -> None:
    _lose_chunks(model, layer)
    _set_attribute(_node(model, layer, ("GroupQueryAttention",)), "local_window_size", 16)


def _unscaled_experts(model: onnx.ModelProto, layer: int) -> None:
    _node(model, layer, ("MoE",)).input[0] = f"layers.{layer}.feed_forward_norm"


FUSED = (
    Fault("half rotation", _interleaved_off, "attention", "RoPE rotates halves and not neighboring pairs"),
    Fault("scale lost", _lose_fused_scale, "attention", "the attention scale is missing"),
    Fault("chunks lost", _lose_chunks, "attention", "the chunk mask is missing"),
    Fault("sliding window", _slide_fused, "attention", "attention slides where it should be chunked"),
    Fault("router weight lost", _unscaled_experts, "experts", "the router weight is missing"),
    Fault("softmax weight on the output", _softmax_weight, "experts", ""),
)
