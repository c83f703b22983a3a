"""ONNX Simplifier over the graph alone: weights stay on disk, so a model of any size simplifies in seconds.

onnxsim folds constants and merges what repeats, and would fold weights too, holding the model twice. It is given the
graph with its weights as inputs; they become initializers again behind it.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxsim

from llama4_pipeline.graph.external_data import load_graph, save_graph, skeleton
from llama4_pipeline.graph.sidecars import copy_sidecars


@dataclass(frozen=True)
class SimplifyReport:
    """Nodes by operator before and after, functions' bodies included, and what went."""

    nodes_before: dict[str, int]
    nodes_after: dict[str, int]
    removed: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


def simplify_graph(graph: Path, out: Path) -> SimplifyReport:
    """Writes the simplified graph; weights are shared, not copied.

    Raises:
        InputError: `graph` holds no ONNX model.
        ValueError: onnxsim's own check of the simplified graph failed, or it lost an input, output or weight.
    """
    model, report = simplify_model(load_graph(graph))
    save_graph(model, out, share_weights=True)
    copy_sidecars(graph, out)
    return report


def simplify_model(model: ir.Model) -> tuple[ir.Model, SimplifyReport]:
    """A simplified copy of a graph, over the same weights.

    Raises:
        ValueError: as `simplify_graph`.
    """
    start = time.monotonic()
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    before = _count(model)
    simplified = _simplify(skeleton(model))
    _restore(simplified, model, weights)
    after = _count(simplified)
    report = SimplifyReport(
        nodes_before=dict(before.most_common()),
        nodes_after=dict(after.most_common()),
        removed=dict((before - after).most_common()),
        seconds=time.monotonic() - start,
    )
    return simplified, report


def _simplify(skeleton: onnx.ModelProto) -> ir.Model:
    simplified, sound = onnxsim.simplify(skeleton)
    if not sound:
        raise ValueError("onnxsim's check of the simplified graph failed")
    return ir.serde.deserialize_model(simplified)


def _restore(simplified: ir.Model, original: ir.Model, weights: dict[str, ir.TensorProtocol | None]) -> None:
    """Makes the weights initializers again and checks that inputs and outputs are the original's."""
    graph = simplified.graph
    by_name = {value.name: value for value in graph.inputs}
    wanted = [value.name for value in original.graph.inputs]
    for name, tensor in weights.items():
        if name not in by_name:
            continue
        value = by_name[name]
        value.const_value = tensor
        graph.initializers[name] = value
        if name not in wanted:
            graph.inputs.remove(value)
    for kind, before, now in (
        ("input", original.graph.inputs, graph.inputs),
        ("output", original.graph.outputs, graph.outputs),
    ):
        lost = [value.name for value in before if value.name not in {v.name for v in now}]
        if lost:
            raise ValueError(f"onnxsim lost {kind} {', '.join(map(str, lost))}")
    unread = [
        name
        for name in weights
        if name not in graph.initializers and original.graph.initializers[name].uses()
    ]
    if unread:
        raise ValueError(f"onnxsim lost weight {', '.join(unread)}")


def _count(model: ir.Model) -> Counter:
    nodes = Counter(node.op_type for node in model.graph)
    for function in model.functions.values():
        nodes.update(node.op_type for node in function)
    return nodes
