"""Which initializers of a fused graph are quantised, which stay float and why, and in which layout they lie."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.blocks import column_blocks, expert_blocks, row_blocks
from llama4_pipeline.llama4.architecture import LM_HEAD

_FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ROTARY_OPERATORS = {"GroupQueryAttention", "RotaryEmbedding"}
_LARGE_WEIGHTS = 1024  # a smaller matrix left in float is not worth an error


class Layout(Enum):
    """How the rows (outputs) and inputs of a weight lie in its initializer."""

    INPUTS_FIRST = "[in, out]"
    ROWS_FIRST = "[out, in]"
    EXPERTS = "[experts, out, in]"


@dataclass(frozen=True)
class Weight:
    """A weight to quantise.

    Attributes:
        value: its initializer.
        layout: of the initializer.
        users: the MatMul, Gather and MoE nodes that compute with it.
    """

    value: ir.Value
    layout: Layout
    users: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Name of the initializer."""
        return self.value.name or ""

    @property
    def experts(self) -> int:
        """Matrices in the weight; 1 but for expert stacks."""
        return _shape(self.value)[0] if self.layout is Layout.EXPERTS else 1

    @property
    def rows(self) -> int:
        """Outputs of one matrix."""
        return _shape(self.value)[-1 if self.layout is Layout.INPUTS_FIRST else -2]

    @property
    def inputs(self) -> int:
        """Inputs of one matrix: the axis along which blocks share a scale."""
        return _shape(self.value)[-2 if self.layout is Layout.INPUTS_FIRST else -1]

    @property
    def is_table(self) -> bool:
        """Whether rows of it are looked up: an embedding, perhaps the head too."""
        return any(node.op_type == "Gather" for node in self.users)

    @property
    def nbytes(self) -> int:
        """Bytes of the float weight."""
        assert self.value.const_value is not None
        return self.value.const_value.nbytes

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Expert number and a block of its rows, [n, inputs] of the stored dtype, in order."""
        tensor = self.value.const_value
        assert tensor is not None
        if self.layout is Layout.EXPERTS:
            yield from expert_blocks(tensor)
        elif self.layout is Layout.ROWS_FIRST:
            yield from ((0, block) for block in row_blocks(tensor))
        else:
            yield from ((0, block) for block in column_blocks(tensor))


def find_weights(graph: ir.Graph) -> tuple[list[Weight], dict[str, str]]:
    """Sorts the float initializers of a fused graph.

    Returns:
        The weights to quantise in the order of first use, and for each other float initializer why it stays.

    Raises:
        InputError: a large matrix is used in a way that no quantised operator covers.
    """
    users: dict[str, list[ir.Node]] = {}
    layouts: dict[str, Layout] = {}
    for node in graph:
        for value, layout in _weight_inputs(node):
            users.setdefault(value.name or "", []).append(node)
            if layouts.setdefault(value.name or "", layout) is not layout:
                raise InputError(
                    f"{value.name} is used both as {layouts[value.name or '']} and as {layout.value}"
                )
    values = graph.initializers
    weights = [Weight(values[name], layouts[name], tuple(nodes)) for name, nodes in users.items()]
    floats = {
        name: value for name, value in values.items() if value.dtype in _FLOAT_TYPES and name not in users
    }
    return weights, {name: _reason_to_stay(value) for name, value in floats.items()}


def is_small(shape: Sequence[int]) -> bool:
    """Whether a matrix that is no stack of experts stays in float, since there is little to save."""
    return math.prod(shape) < _LARGE_WEIGHTS


def untie(graph: ir.Graph) -> None:
    """Gives a head that reads the embedding's table an initializer of its own, `LM_HEAD`, with the same numbers."""
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Transpose" else None
        if table is None or not table.is_initializer():
            continue
        if all(user.op_type != "Gather" for user in table.consumers()):
            continue
        head = ir.Value(name=LM_HEAD, type=table.type, shape=table.shape, const_value=table.const_value)
        graph.register_initializer(head)
        node.replace_input_with(0, head)


def _weight_inputs(node: ir.Node) -> list[tuple[ir.Value, Layout]]:
    """The initializers of a node that its quantised counterpart can take."""
    found: list[tuple[ir.Value | None, Layout]] = []
    if node.op_type == "MatMul":
        found.append((node.inputs[1], Layout.INPUTS_FIRST))
        found.append((transposed(node.inputs[1]), Layout.ROWS_FIRST))
    elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        found.append((node.inputs[0], Layout.ROWS_FIRST))
    elif node.op_type == "MoE":
        found += [(node.inputs[2], Layout.EXPERTS), (node.inputs[4], Layout.EXPERTS)]
    return [(value, layout) for value, layout in found if value is not None and _is_matrix(value, layout)]


def transposed(value: ir.Value | None) -> ir.Value | None:
    """The initializer of which `value` is the transpose, if it is one (a tied lm_head)."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.attributes.get_ints("perm", (1, 0)) != (1, 0):
        return None
    return node.inputs[0]


def _is_matrix(value: ir.Value, layout: Layout) -> bool:
    """Whether a quantised operator can take it; both stacks of a MoE, or none."""
    if not value.is_initializer() or value.dtype not in _FLOAT_TYPES or "router" in (value.name or ""):
        return False
    shape = _shape(value)
    return layout is Layout.EXPERTS or (len(shape) >= 2 and not is_small(shape))


def _reason_to_stay(value: ir.Value) -> str:
    shape = _shape(value)
    consumers = {node.op_type for node in value.consumers()}
    if "router" in (value.name or ""):
        return "router: a rounded logit sends a token to another expert"
    if len(shape) < 2:
        return "vector or scalar"
    if consumers <= _ROTARY_OPERATORS:
        return "rotary table"
    if is_small(shape):
        return f"fewer than {_LARGE_WEIGHTS} weights"
    raise InputError(
        f"{value.name} {list(shape)} feeds {', '.join(sorted(consumers)) or 'nothing'}, which has no quantised form: "
        "quantise a graph written by `export --form fused`"
    )


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())
