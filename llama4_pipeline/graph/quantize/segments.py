"""A graph cut into layers that run one after the other."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from llama4_pipeline.graph.external_data import read_elements
from llama4_pipeline.graph.quantize.weights import Weight
from llama4_pipeline.graph.session import cut_out, open_session

_LAYER = re.compile(r"\blayers\.\d+\.")


@dataclass(frozen=True)
class Segment:
    """A stretch of a graph, told by the names of its values: they are the same in the float and the quantised graph.

    Attributes:
        weights: that are used first in this stretch.
        entering: values that the stretch before hands over; the rest comes from the graph's inputs.
        leaving: values that later stretches need.
    """

    weights: tuple[Weight, ...]
    entering: tuple[str, ...]
    leaving: tuple[str, ...]


def cut_by_layer(graph: ir.Graph, weights: list[Weight]) -> list[Segment]:
    """Cuts a float graph behind the last use of each layer's weights; a weight of no layer is a stretch of its own."""
    place = {node: index for index, node in enumerate(graph)}
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        layer = _LAYER.search(weight.name)
        groups.setdefault(layer[0] if layer else weight.name, []).append(weight)
    flowing = _flowing_values(graph, weights)
    segments: list[Segment] = []
    entering: tuple[str, ...] = ()
    for group in groups.values():  # in the order of first use, as the weights are
        border = max(place[node] for weight in group for node in weight.users)
        leaving = tuple(value.name or "" for value in flowing if _crosses(value, border, place))
        segments.append(Segment(tuple(group), entering, leaving))
        entering = leaving
    return segments


def open_segment(
    graph: ir.Graph, entering: Mapping[str, np.dtype], outputs: Sequence[str], directory: Path
) -> onnxruntime.InferenceSession:
    """Opens the part of a graph that leads from the entering values and the graph's inputs to some of its values.

    Args:
        graph: the float or the quantised graph.
        entering: names and dtypes.
        outputs: names.
        directory: where the files of its external weights lie; those that lie elsewhere are read into the session.
    """
    part = cut_out(graph, entering, outputs)
    for value in part.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) != directory:
            array = read_elements(tensor, 0, tensor.size)
            value.const_value = ir.tensor(array.reshape(tensor.shape.numpy()), name=tensor.name)
    return open_session(ir.Model(part, ir_version=10), directory)


def _flowing_values(graph: ir.Graph, weights: list[Weight]) -> list[ir.Value]:
    """What is computed with the weights; masks and positions are not, and every stretch makes its own."""
    users = {node for weight in weights for node in weight.users}
    flowing: dict[ir.Value, None] = {}
    for node in graph:
        if node in users or any(value in flowing for value in node.inputs):
            flowing.update(dict.fromkeys(node.outputs))
    return list(flowing)


def _crosses(value: ir.Value, border: int, place: Mapping[ir.Node, int]) -> bool:
    producer = value.producer()
    assert producer is not None
    return place[producer] <= border and any(place[node] > border for node in value.consumers())
