"""MixtureOfExperts calls to com.microsoft MoE: only the chosen experts are computed.

The operator scales an expert's *output* by a softmax weight; Llama 4 scales its *input* by a sigmoid. With k = 1 and
normalised weights the operator's own weight is 1, so the scaled token goes in and nothing is scaled behind. With more
than one expert per token each choice has an input of its own: one operator for each, over the same weights.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE
"""

import onnx_ir as ir
from onnx_ir import tape

from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.fuse.rewriter import Rewriter

_OPERATORS = ("MixtureOfExperts",)
_MOE_ATTRIBUTES: dict[str, int | float | str] = {
    "k": 1,
    "normalize_routing_weights": 1,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # gate and up rows alternate, the only form that the CPU kernel takes
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


def fuse_experts(rewriter: Rewriter) -> int:
    """Replaces every MixtureOfExperts call; returns how many."""
    calls = rewriter.calls(*_OPERATORS)
    for call in calls:
        nodes = tape.Tape()
        rewriter.replace(call, nodes, [_sum_of_chosen(rewriter, nodes, call)])
    return len(calls)


def _sum_of_chosen(rewriter: Rewriter, nodes: tape.Tape, call: ir.Node) -> ir.Value:
    hidden, logits = call.inputs[:2]
    k = call.attributes["experts_per_token"].as_int()
    top, chosen = nodes.op_multi_out("TopK", [logits, rewriter.ints(k)], {"axis": -1}, num_outputs=2)
    scores, choices = _columns(nodes, nodes.op("Sigmoid", [top]), k), _columns(nodes, chosen, k)
    parts = [
        _moe(nodes, call, nodes.op("Mul", [hidden, score]), _choice(rewriter, nodes, call, choice))
        for score, choice in zip(scores, choices, strict=True)
    ]
    return parts[0] if k == 1 else nodes.op("Sum", parts)


def _columns(nodes: tape.Tape, value: ir.Value, count: int) -> list[ir.Value]:
    """The columns [B, S, 1] of a value [B, S, count]."""
    if count == 1:
        return [value]
    return list(nodes.op_multi_out("Split", [value], {"axis": -1, "num_outputs": count}, num_outputs=count))


def _choice(rewriter: Rewriter, nodes: tape.Tape, call: ir.Node, chosen: ir.Value) -> ir.Value:
    """Router input [B S, E] that leaves the operator no choice: 1 at the chosen expert, 0 elsewhere.

    Given the logits it would choose by their softmax, in which two close logits can round to one number.
    """
    off_on = rewriter.constant("choice.off_on", ir.tensor([0.0, 1.0]))
    marked = nodes.op("OneHot", [chosen, rewriter.ints(_experts(call)), off_on], {"axis": -1})
    return nodes.op("Reshape", [marked, rewriter.ints(-1, _experts(call))])


def _moe(nodes: tape.Tape, call: ir.Node, scaled: ir.Value, logits: ir.Value) -> ir.Value:
    gate_up, down = call.inputs[2:]
    return nodes.op("MoE", [scaled, logits, gate_up, None, down], _MOE_ATTRIBUTES, domain=MICROSOFT)


def _experts(call: ir.Node) -> int:
    gate_up = call.inputs[2]
    assert gate_up is not None and gate_up.shape is not None
    return int(gate_up.shape.numpy()[0])
