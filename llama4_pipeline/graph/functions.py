"""The functions of the ONNX domain `llama4`: one block of the model each, in standard operators of opset 18.

A model that calls them carries them (model-local functions, onnx/docs/IR.md), so any runtime expands and runs them.
A function stands behind those that it calls, here and in the model: onnx.reference reads them in one pass.
The optimise stage swaps each call for ONNX Runtime's kernel. Shapes are those of `llama4_pipeline.llama4.exportable`.
"""

import onnx_ir as ir
from onnxscript import OnnxFunction, script, values
from onnxscript import opset18 as op

DOMAIN = "llama4"
_VERSION = 1
_llama4 = values.Opset(DOMAIN, _VERSION)


@script(_llama4, default_opset=op)
def LastPositions(hidden, logits_to_keep):
    """The last `logits_to_keep` positions [B, kept, H]; 0 keeps all, as in transformers' `slice_logits_to_keep`."""
    start = op.Reshape(op.Neg(logits_to_keep), op.Constant(value_ints=[1]))
    end = op.Constant(value_ints=[9223372036854775807])
    return op.Slice(hidden, start, end, op.Constant(value_ints=[1]))


@script(_llama4, default_opset=op)
def L2Normalization(x, epsilon: float):
    """x / sqrt(mean(x^2) + epsilon) over the last axis, the mean in float32; of a head `Llama4TextL2Norm`."""
    wide = op.Cast(x, to=1)
    power = op.ReduceMean(wide * wide, op.Constant(value_ints=[-1]))
    return op.CastLike(wide / op.Sqrt(power + op.Constant(value_float=epsilon)), x)


@script(_llama4, default_opset=op)
def RMSNormalization(x, weight, epsilon: float):
    """L2Normalization(x) * weight; `Llama4TextRMSNorm`."""
    return _llama4.L2Normalization(x, epsilon=epsilon) * weight


@script(_llama4, default_opset=op)
def SkipRMSNormalization(delta, residual, weight, epsilon: float):
    """(RMSNormalization(residual + delta), residual + delta)."""
    total = residual + delta
    return _llama4.RMSNormalization(total, weight, epsilon=epsilon), total


@script(_llama4, default_opset=op)
def SwiGLU(gate_up):
    """silu(gate) * up of a packed [..., 2 I]."""
    gate, up = op.Split(gate_up, axis=-1, num_outputs=2)
    return gate * op.Sigmoid(gate) * up


@script(_llama4, default_opset=op)
def MixtureOfExperts(hidden, router_logits, gate_up, down, experts_per_token: int):
    """Sum over the chosen experts e of expert_e(sigmoid(logit_e) * token), [B, S, H]; `Llama4TextMoe`.

    This body computes every expert and gives those not chosen a zero input, as transformers does; ONNX Runtime's MoE
    operator, which takes its place in the fused form, computes the chosen ones only. Rows of `gate_up` [E, 2 I, H]
    alternate gate and up.
    """
    k = op.Reshape(op.Constant(value_int=experts_per_token), op.Constant(value_ints=[1]))
    top, chosen = op.TopK(router_logits, k, axis=-1)
    scores = op.CastLike(op.Sigmoid(op.Cast(top, to=1)), hidden)
    zeros = op.CastLike(op.Constant(value_float=0.0), hidden)
    nothing = op.Expand(zeros, op.Shape(router_logits))
    weights = op.ScatterElements(nothing, chosen, scores, axis=-1)  # [B, S, E]
    # [E, B, S, 1]
    by_expert = op.Unsqueeze(op.Transpose(weights, perm=[2, 0, 1]), op.Constant(value_ints=[3]))
    scaled = op.Unsqueeze(hidden, op.Constant(value_ints=[0])) * by_expert  # [E, B, S, H]
    # [E, 1, H, 2 I]
    by_row = op.Unsqueeze(op.Transpose(gate_up, perm=[0, 2, 1]), op.Constant(value_ints=[1]))
    both = op.MatMul(scaled, by_row)  # [E, B, S, 2 I]
    pairs = op.Reshape(both, op.Constant(value_ints=[0, 0, 0, -1, 2]))
    gate, up = op.Split(pairs, axis=-1, num_outputs=2)
    gated = op.Squeeze(gate * op.Sigmoid(gate) * up, op.Constant(value_ints=[4]))  # [E, B, S, I]
    by_column = op.Unsqueeze(op.Transpose(down, perm=[0, 2, 1]), op.Constant(value_ints=[1]))  # [E, 1, I, H]
    return op.ReduceSum(op.MatMul(gated, by_column), op.Constant(value_ints=[0]), keepdims=0)


@script(_llama4, default_opset=op)
def Slots(attention_mask):
    """0 .. T - 1 as [T], int64."""
    total = op.Squeeze(op.Shape(attention_mask, start=1, end=2))
    return op.Range(op.Constant(value_int=0), total, op.Constant(value_int=1))


@script(_llama4, default_opset=op)
def QuerySlots(input_ids, attention_mask):
    """T - S .. T - 1 as [S, 1], int64: where in the cache the new tokens go."""
    total = op.Squeeze(op.Shape(attention_mask, start=1, end=2))
    new = op.Squeeze(op.Shape(input_ids, start=1, end=2))
    slots = op.Range(total - new, total, op.Constant(value_int=1))
    return op.Unsqueeze(slots, op.Constant(value_ints=[1]))


@script(_llama4, default_opset=op)
def CausalBias(input_ids, attention_mask, to: int):
    """0 where query and key may meet, -30000 elsewhere (a float16 sum with a score stays finite), [B, 1, S, T]."""
    kv = _llama4.Slots(attention_mask)
    query = _llama4.QuerySlots(input_ids, attention_mask)
    causal = op.LessOrEqual(kv, query)
    real = op.Unsqueeze(op.Cast(attention_mask, to=9), op.Constant(value_ints=[1, 2]))
    return op.Cast(op.Where(op.And(causal, real), 0.0, -30000.0), to=to)


@script(_llama4, default_opset=op)
def ChunkedCausalBias(input_ids, attention_mask, chunk_size: int, to: int):
    """As CausalBias, and query and key lie in the same chunk; chunks begin behind a row's left padding.

    `chunked_overlay` of transformers' masking_utils.py.
    """
    kv = _llama4.Slots(attention_mask)
    query = _llama4.QuerySlots(input_ids, attention_mask)
    causal = op.LessOrEqual(kv, query)
    real = op.Unsqueeze(op.Cast(attention_mask, to=9), op.Constant(value_ints=[1, 2]))
    first = op.ArgMax(attention_mask, axis=1, keepdims=1)  # [B, 1]: count of left padding
    origin = op.Unsqueeze(first, op.Constant(value_ints=[1, 2]))  # [B, 1, 1, 1]
    size = op.Constant(value_int=chunk_size)
    same = op.Equal(op.Div(query - origin, size), op.Div(kv - origin, size))
    return op.Cast(op.Where(op.And(op.And(causal, same), real), 0.0, -30000.0), to=to)


@script(_llama4, default_opset=op)
def RotaryAngles(position_ids, inverse_frequencies, scaling: float):
    """Cosine and sine of position * frequency, each [B, S, D / 2], float32."""
    positions = op.Unsqueeze(op.Cast(position_ids, to=1), op.Constant(value_ints=[2]))
    angles = positions * inverse_frequencies
    factor = op.Constant(value_float=scaling)
    return op.Cos(angles) * factor, op.Sin(angles) * factor


@script(_llama4, default_opset=op)
def AttentionTemperature(input_ids, attention_mask, floor_scale: float, attn_scale: float):
    """log(1 + floor((slot + 1) / floor_scale)) * attn_scale + 1 as [S, 1], float32 (arXiv:2501.19399)."""
    slot = op.Cast(_llama4.QuerySlots(input_ids, attention_mask), to=1)
    steps = op.Floor((slot + 1.0) / op.Constant(value_float=floor_scale))
    return op.Log(steps + 1.0) * op.Constant(value_float=attn_scale) + 1.0


@script(_llama4, default_opset=op)
def AsList(count: int):
    """An attribute as int64 [1]."""
    return op.Reshape(op.Constant(value_int=count), op.Constant(value_ints=[1]))


@script(_llama4, default_opset=op)
def SplitHeads(qkv, num_heads: int, kv_num_heads: int):
    """Packed [B, S, (N + 2 K) D] to q [B, S, N, D], k and v [B, S, K, D]."""
    n = _llama4.AsList(count=num_heads)
    k = _llama4.AsList(count=kv_num_heads)
    all_heads = n + k + k
    shape = op.Concat(op.Constant(value_ints=[0, 0]), all_heads, op.Constant(value_ints=[-1]), axis=0)
    heads = op.Reshape(qkv, shape)
    query, key, value = op.Split(heads, op.Concat(n, k, k, axis=0), axis=2)
    return query, key, value


@script(_llama4, default_opset=op)
def Rotate(x, cos, sin):
    """RoPE on neighbouring pairs (x[2i], x[2i + 1]) of [B, S, heads, D]; `apply_rotary_emb`."""
    pairs = op.Reshape(op.Cast(x, to=1), op.Constant(value_ints=[0, 0, 0, -1, 2]))
    real, imaginary = op.Split(pairs, axis=-1, num_outputs=2)
    c = op.Unsqueeze(cos, op.Constant(value_ints=[2, 4]))  # [B, S, 1, D / 2, 1]
    s = op.Unsqueeze(sin, op.Constant(value_ints=[2, 4]))
    turned = op.Concat(real * c - imaginary * s, real * s + imaginary * c, axis=-1)
    return op.CastLike(op.Reshape(turned, op.Shape(x)), x)


@script(_llama4, default_opset=op)
def CachedAttention(
    query, key, value, past_key, past_value, bias, num_heads: int, kv_num_heads: int, scale: float
):
    """Grouped attention over cache and new tokens: q [B, S, N, D], k and v [B, S, K, D] to [B, S, N D]."""
    present_key = op.Concat(past_key, op.Transpose(key, perm=[0, 2, 1, 3]), axis=2)  # [B, K, T, D]
    present_value = op.Concat(past_value, op.Transpose(value, perm=[0, 2, 1, 3]), axis=2)
    zero = op.Constant(value_ints=[0])
    n = _llama4.AsList(count=num_heads)
    k = _llama4.AsList(count=kv_num_heads)
    grouped = op.Concat(zero, k, n / k, op.Shape(query, start=1, end=2), op.Constant(value_ints=[-1]), axis=0)
    q = op.Reshape(op.Transpose(query, perm=[0, 2, 1, 3]), grouped)  # [B, K, N / K, S, D]
    keys = op.Unsqueeze(op.Transpose(present_key, perm=[0, 1, 3, 2]), op.Constant(value_ints=[2]))
    factor = op.CastLike(op.Constant(value_float=scale), q)
    scores = op.MatMul(q, keys) * factor + op.Unsqueeze(bias, op.Constant(value_ints=[1]))
    mixed = op.MatMul(op.Softmax(scores, axis=-1), op.Unsqueeze(present_value, op.Constant(value_ints=[2])))
    by_head = op.Reshape(
        mixed, op.Concat(zero, n, op.Shape(query, start=1, end=2), op.Constant(value_ints=[-1]), axis=0)
    )
    attended = op.Reshape(op.Transpose(by_head, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def PlainAttention(qkv, past_key, past_value, bias, num_heads: int, kv_num_heads: int, scale: float):
    """Attention of a NoPE layer without temperature."""
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    attended, present_key, present_value = _llama4.CachedAttention(
        query,
        key,
        value,
        past_key,
        past_value,
        bias,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
    )
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def TemperedAttention(
    qkv, past_key, past_value, bias, temperature, num_heads: int, kv_num_heads: int, scale: float
):
    """Attention of a NoPE layer; the temperature [S, 1] scales the queries."""
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    factor = op.Unsqueeze(temperature, op.Constant(value_ints=[2]))
    tempered = op.CastLike(op.Cast(query, to=1) * factor, query)
    attended, present_key, present_value = _llama4.CachedAttention(
        tempered,
        key,
        value,
        past_key,
        past_value,
        bias,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
    )
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def RotaryAttention(
    qkv, past_key, past_value, bias, cos, sin, num_heads: int, kv_num_heads: int, scale: float
):
    """Attention of a RoPE layer without QK-norm; the cache holds rotated keys."""
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    rotated_query = _llama4.Rotate(query, cos, sin)
    rotated_key = _llama4.Rotate(key, cos, sin)
    attended, present_key, present_value = _llama4.CachedAttention(
        rotated_query, rotated_key, value, past_key, past_value, bias,
        num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale,
    )  # fmt: skip
    return attended, present_key, present_value


@script(_llama4, default_opset=op)
def NormalizedRotaryAttention(
    qkv, past_key, past_value, bias, cos, sin, num_heads: int, kv_num_heads: int, scale: float, epsilon: float
):
    """Attention of a RoPE layer with QK-norm, which follows the rotation."""
    query, key, value = _llama4.SplitHeads(qkv, num_heads=num_heads, kv_num_heads=kv_num_heads)
    normed_query = _llama4.L2Normalization(_llama4.Rotate(query, cos, sin), epsilon=epsilon)
    normed_key = _llama4.L2Normalization(_llama4.Rotate(key, cos, sin), epsilon=epsilon)
    attended, present_key, present_value = _llama4.CachedAttention(
        normed_query, normed_key, value, past_key, past_value, bias,
        num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale,
    )  # fmt: skip
    return attended, present_key, present_value


_FUNCTIONS = {name: each for name, each in globals().items() if isinstance(each, OnnxFunction)}


def attach_functions(model: ir.Model) -> tuple[str, ...]:
    """Gives `model` the functions that its nodes call, and those that these call; returns their names.

    Raises:
        KeyError: a node calls a function of the domain that does not exist.
    """
    opset = model.opset_imports[""]
    pending = {node.op_type for node in model.graph if node.domain == DOMAIN}
    called: dict[str, ir.Function] = {}
    while pending:
        name = pending.pop()
        called[name] = ir.serde.deserialize_function(_FUNCTIONS[name].to_function_proto())
        called[name].opset_imports[""] = opset
        pending |= {node.op_type for node in called[name] if node.domain == DOMAIN} - called.keys()
    names = [name for name in _FUNCTIONS if name in called]
    model.functions.update({called[name].identifier(): called[name] for name in names})
    model.opset_imports[DOMAIN] = _VERSION
    return tuple(names)
