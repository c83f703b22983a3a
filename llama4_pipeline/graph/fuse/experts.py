"""MixtureOfExperts calls to com.microsoft MoE: only the chosen experts are computed.

The operator scales an expert's *output* by a softmax weight; Llama 4 scales its *input* by a sigmoid. With k = 1 and
normalised weights the operator's own weight is 1, so the scaled token goes in and nothing is scaled behind. With more
than one expert per token each choice has an input of its own: one operator for each, over the same weights.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE
"""

import onnx_ir as ir
from onnx_ir import tape

from llama4_pipeline.graph.fuse.rewriter import MICROSOFT, Rewriter

OPERATORS = ("MixtureOfExperts",)
MOE_ATTRIBUTES: dict[str, int | float | str] = {
    "k": 1,
    "normalize_routing_weights": 1,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # gate and up rows alternate, the only form that the CPU kernel takes
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


def fuse_experts(rewriter: Rewriter) -> int:
    """Replaces every MixtureOfExperts call; returns how many."""
    calls = rewriter.calls(*OPERATORS)
    for call in calls:
        nodes = tape.Tape()
        k = call.attributes["experts_per_token"].as_int()
        routed = _single(rewriter, nodes, call) if k == 1 else _several(rewriter, nodes, call, k)
        rewriter.replace(call, nodes, [routed])
    return len(calls)


def _single(rewriter: Rewriter, nodes: tape.Tape, call: ir.Node) -> ir.Value:
    hidden, logits = call.inputs[:2]
    top, chosen = nodes.op_multi_out("TopK", [logits, rewriter.ints(1)], {"axis": -1}, num_outputs=2)
    scaled = nodes.op("Mul", [hidden, nodes.op("Sigmoid", [top])])
    return _moe(nodes, call, scaled, _choice(rewriter, nodes, call, chosen))


def _several(rewriter: Rewriter, nodes: tape.Tape, call: ir.Node, k: int) -> ir.Value:
    hidden, logits = call.inputs[:2]
    top, chosen = nodes.op_multi_out("TopK", [logits, rewriter.ints(k)], {"axis": -1}, num_outputs=2)
    scores = nodes.op_multi_out(
        "Split", [nodes.op("Sigmoid", [top])], {"axis": -1, "num_outputs": k}, num_outputs=k
    )
    choices = nodes.op_multi_out("Split", [chosen], {"axis": -1, "num_outputs": k}, num_outputs=k)
    parts = []
    for score, choice in zip(scores, choices, strict=True):
        scaled = nodes.op("Mul", [hidden, score])
        parts.append(_moe(nodes, call, scaled, _choice(rewriter, nodes, call, choice)))
    return nodes.op("Sum", parts)


def _choice(rewriter: Rewriter, nodes: tape.Tape, call: ir.Node, chosen: ir.Value) -> ir.Value:
    """Router input [B S, E] that leaves the operator no choice: 1 at the chosen expert, 0 elsewhere.

    Given the logits it would choose by their softmax, in which two close logits can round to one number.
    """
    off_on = rewriter.constant("choice.off_on", ir.tensor([0.0, 1.0]))
    marked = nodes.op("OneHot", [chosen, rewriter.ints(_experts(call)), off_on], {"axis": -1})
    return nodes.op("Reshape", [marked, rewriter.ints(-1, _experts(call))])


def _moe(nodes: tape.Tape, call: ir.Node, scaled: ir.Value, logits: ir.Value) -> ir.Value:
    gate_up, down = call.inputs[2:]
    return nodes.op("MoE", [scaled, logits, gate_up, None, down], MOE_ATTRIBUTES, domain=MICROSOFT)


def _experts(call: ir.Node) -> int:
    gate_up = call.inputs[2]
    assert gate_up is not None and gate_up.shape is not None
    return int(gate_up.shape.numpy()[0])
