"""SwiGLU calls to Split, com.microsoft QuickGelu (x * sigmoid(alpha * x), alpha 1) and Mul."""

from onnx_ir import tape

from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.fuse.rewriter import Rewriter

_OPERATORS = ("SwiGLU",)


def fuse_swiglu(rewriter: Rewriter) -> int:
    """Replaces every SwiGLU call; returns how many."""
    calls = rewriter.calls(*_OPERATORS)
    for call in calls:
        nodes = tape.Tape()
        gate, up = nodes.op_multi_out("Split", call.inputs, {"axis": -1, "num_outputs": 2}, num_outputs=2)
        silu = nodes.op("QuickGelu", [gate], {"alpha": 1.0}, domain=MICROSOFT)
        rewriter.replace(call, nodes, [nodes.op("Mul", [silu, up])])
    return len(calls)
