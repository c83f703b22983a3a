"""The portable graph to the fused one: each call of a `llama4` function becomes ONNX Runtime's kernel.

One file a fusion. Nothing is guessed from patterns: a fusion replaces every call of its functions, and a call that
is left over is an error that names itself.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.external_data import load_graph, save_graph
from llama4_pipeline.graph.functions import DOMAIN
from llama4_pipeline.graph.fuse.attention import fuse_attention
from llama4_pipeline.graph.fuse.experts import fuse_experts
from llama4_pipeline.graph.fuse.last_positions import fuse_last_positions
from llama4_pipeline.graph.fuse.normalization import fuse_normalization
from llama4_pipeline.graph.fuse.rewriter import Rewriter
from llama4_pipeline.graph.fuse.rows import Rows
from llama4_pipeline.graph.fuse.swiglu import fuse_swiglu
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.metadata import ANY_WIDTH_KEY, FORM_KEY, exported_context

OLDEST_OPSET = 23  # RMSNormalization


@dataclass(frozen=True)
class FuseReport:
    """How often each fusion fired, and the nodes of the graph by operator before and after."""

    fired: dict[str, int]
    nodes_before: dict[str, int]
    nodes_after: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


def fuse_graph(graph: Path, out: Path) -> FuseReport:
    """Writes the fused form of a portable graph; weights are shared, not copied.

    Args:
        graph: directory of an exported or simplified graph.
        out: directory for the fused one.

    Raises:
        InputError: the graph is not a portable one of this pipeline.
        ValueError: a call of a `llama4` function is left over; the message names it.
    """
    model = load_graph(graph)
    if model.metadata_props.get(FORM_KEY) != "portable":
        raise InputError(
            f"{graph} is not a portable graph of this pipeline: give the output of `export` or simplify"
        )
    report = fuse_model(model)
    save_graph(model, out, share_weights=True)
    copy_sidecars(graph, out)
    return report


def fuse_model(model: ir.Model) -> FuseReport:
    """Fuses a portable graph of this pipeline in place.

    Raises:
        InputError: the graph does not say for how many tokens it was exported.
        ValueError: as `fuse_graph`.
    """
    max_context = exported_context(model.metadata_props)
    before = Counter(node.op_type for node in model.graph)
    rewriter = Rewriter(model)
    rows = Rows(rewriter)
    fired = {
        "attention": fuse_attention(rewriter, rows, max_context),
        "experts": fuse_experts(rewriter),
        "normalization": fuse_normalization(rewriter),
        "swiglu": fuse_swiglu(rewriter),
        "last_positions": fuse_last_positions(rewriter, rows),
    }
    rewriter.finish()
    left = [f"{node.op_type} ({node.name})" for node in model.graph if node.domain == DOMAIN]
    if left:
        raise ValueError(f"no fusion took these calls: {', '.join(left)}")
    model.functions.clear()
    del model.opset_imports[DOMAIN]
    model.opset_imports.update({"": max(model.opset_imports[""], OLDEST_OPSET), MICROSOFT: 1})
    model.metadata_props[FORM_KEY] = "fused"
    if not rows.slots_are_counted:
        model.metadata_props[ANY_WIDTH_KEY] = "true"
    return FuseReport(fired, _counts(before), _counts(Counter(node.op_type for node in model.graph)))


def _counts(counter: Counter) -> dict[str, int]:
    return dict(counter.most_common())
