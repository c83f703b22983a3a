"""LastPositions calls to Slice, behind the turn that brings the rows back to the caller's order."""

from onnx_ir import tape

from llama4_pipeline.graph.fuse.rewriter import END, Rewriter
from llama4_pipeline.graph.fuse.rows import Rows

_OPERATORS = ("LastPositions",)


def fuse_last_positions(rewriter: Rewriter, rows: Rows) -> int:
    """Replaces the LastPositions call; returns how many."""
    calls = rewriter.calls(*_OPERATORS)
    for call in calls:
        hidden, keep = call.inputs
        nodes, ints = tape.Tape(), rewriter.ints
        in_callers_order = nodes.op("GatherND", [hidden, rows.turn_back], {"batch_dims": 1})
        kept = nodes.op("Min", [keep, rows.new])  # which brings the number to the CPU, where Slice wants it
        start = nodes.op("Neg", [kept])
        rewriter.replace(call, nodes, [nodes.op("Slice", [in_callers_order, start, ints(END), ints(1)])])
    return len(calls)
