"""How a fusion changes a graph: one call goes, the nodes of a kernel come in its place, names stay."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience, tape

from llama4_pipeline.graph.functions import DOMAIN

END = 9223372036854775807  # of a Slice that goes as far as its input


class Rewriter:
    """Replaces the calls of the `llama4` functions in a graph.

    Attributes:
        model: the model being rewritten.
        preamble: nodes made here run before all others; they may read graph inputs and initializers only.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.preamble = tape.Tape()
        self._shared: dict[str, Any] = {}
        self._inputs = {value.name: value for value in self.graph.inputs}

    def calls(self, *operators: str) -> list[ir.Node]:
        """The calls of these functions, in graph order."""
        return [node for node in self.graph if node.domain == DOMAIN and node.op_type in operators]

    def input(self, name: str) -> ir.Value:
        """A graph input by name."""
        return self._inputs[name]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made at the first asking and shared from then on."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def has_made(self, name: str) -> bool:
        """Whether `once` was asked for it."""
        return name in self._shared

    def ints(self, *values: int) -> ir.Value:
        """An int64 [n] constant, shared by value."""
        return self.constant(
            "ints." + ".".join(map(str, values)), ir.tensor(list(values), dtype=ir.DataType.INT64)
        )

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer, made once for each name."""

        def make() -> ir.Value:
            value = ir.Value(
                name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
            )
            value.const_value = tensor
            self.graph.register_initializer(value)
            return value

        return self.once(f"constant.{name}", make)

    def replace(self, call: ir.Node, nodes: tape.Tape, outputs: Sequence[ir.Value]) -> None:
        """Puts `nodes` where `call` stands; `outputs` take over the names and the readers of its outputs."""
        for old, new in zip(call.outputs, outputs, strict=True):
            new.name, new.shape, new.type = old.name, old.shape, old.type
            producer = new.producer()
            if producer is not None and call.name:
                producer.name = call.name
        convenience.replace_nodes_and_values(
            self.graph, call, [call], list(nodes.nodes), call.outputs, outputs
        )

    def finish(self) -> None:
        """Puts the preamble in front, drops what nothing reads, and names what has no name."""
        first = next(iter(self.graph))
        self.graph.insert_before(first, list(self.preamble.nodes))
        used = {value for node in self.graph for value in node.inputs} | set(self.graph.inputs)
        for name, value in list(self.graph.initializers.items()):
            if value not in used:
                del self.graph.initializers[name]
        for index, node in enumerate(self.graph):
            node.name = node.name or f"{node.op_type}.{index}"
