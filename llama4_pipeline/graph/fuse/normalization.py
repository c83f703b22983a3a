"""Norm calls to RMSNormalization (ai.onnx 23) and com.microsoft SkipSimplifiedLayerNormalization.

https://onnx.ai/onnx/operators/onnx__RMSNormalization.html
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipSimplifiedLayerNormalization
"""

from onnx_ir import tape

from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.fuse.rewriter import Rewriter

_OPERATORS = ("RMSNormalization", "SkipRMSNormalization")


def fuse_normalization(rewriter: Rewriter) -> int:
    """Replaces every norm call; a residual addition goes into the operator that follows it. Returns how many."""
    calls = rewriter.calls(*_OPERATORS)
    for call in calls:
        nodes = tape.Tape()
        epsilon = call.attributes["epsilon"].as_float()
        if call.op_type == "RMSNormalization":
            outputs = [nodes.op("RMSNormalization", call.inputs, {"axis": -1, "epsilon": epsilon})]
        else:
            normed, _mean, _deviation, total = nodes.op_multi_out(
                "SkipSimplifiedLayerNormalization",
                call.inputs,
                {"epsilon": epsilon},
                domain=MICROSOFT,
                num_outputs=4,
            )
            outputs = [normed, total]
        rewriter.replace(call, nodes, outputs)
    return len(calls)
