"""Nodes that read float weights turn into nodes that read quantised ones."""

from dataclasses import dataclass

import onnx_ir as ir

from llama4_pipeline.graph import MICROSOFT
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.weights import Weight, transposed

# Of MatMulNBits and QMoE: 4 lets the CPU round activations to int8 by block (fast), 0 keeps them in float (exact; 8-bit
# MatMulNBits then runs a hundred times slower, 8-bit QMoE ignores it).
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class QuantisedInputs:
    """The initializers that replace a weight: codes [(E,) N, B, bytes] of uint8, scales and zero points."""

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    scheme: Scheme


def rewrite_graph(graph: ir.Graph, weights: list[Weight], quantised: dict[str, QuantisedInputs]) -> None:
    """Replaces every user of the weights by its quantised operator and drops the float initializers.

    Args:
        graph: changed in place.
        weights: all of them.
        quantised: their replacements by weight name, already initializers of the graph.
    """
    graph.opset_imports[MICROSOFT] = 1
    by_name = {weight.name: weight for weight in weights}
    done: set[ir.Node] = set()
    for weight in weights:
        for node in weight.users:
            if node not in done:
                done.add(node)
                _replace(graph, node, _counterpart(node, by_name, quantised))
    for weight in weights:
        for node in [node for node in weight.value.consumers() if node.op_type == "Transpose"]:
            graph.remove(node, safe=True)
        graph.initializers.pop(weight.name)


def _counterpart(
    node: ir.Node, weights: dict[str, Weight], quantised: dict[str, QuantisedInputs]
) -> list[ir.Node]:
    if node.op_type == "MatMul":
        value = transposed(node.inputs[1]) or node.inputs[1]
        weight = weights[_name(value)]
        return [_matmul_nbits(node, weight, quantised[weight.name])]
    if node.op_type == "Gather":
        weight = weights[_name(node.inputs[0])]
        return _gather_block_quantized(node, weight, quantised[weight.name])
    up, down = (quantised[_name(node.inputs[index])] for index in (2, 4))
    return [_qmoe(node, up, down)]


def _matmul_nbits(node: ir.Node, weight: Weight, inputs: QuantisedInputs) -> ir.Node:
    operands = [node.inputs[0], inputs.codes, inputs.scales]
    if inputs.zero_points is not None:
        operands.append(inputs.zero_points)
    attributes = {
        "K": weight.inputs,
        "N": weight.rows,
        "bits": inputs.scheme.bits,
        "block_size": inputs.scheme.block_size,
        "accuracy_level": _ACCURACY_LEVEL,
    }
    return ir.node("MatMulNBits", operands, attributes, domain=MICROSOFT, name=node.name)


def _gather_block_quantized(node: ir.Node, weight: Weight, inputs: QuantisedInputs) -> list[ir.Node]:
    """The table as [V, bytes]: a Reshape, folded when the session starts, so that a tied lm_head shares the bytes."""
    row_bytes = weight.inputs * inputs.scheme.bits // 8
    shape = ir.Value(name=f"{weight.name}.row_shape", const_value=ir.tensor([weight.rows, row_bytes]))
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if shape.name not in graph.initializers:
        graph.register_initializer(shape)
    table = ir.node("Reshape", [inputs.codes, graph.initializers[str(shape.name)]], name=f"{node.name}.rows")
    table.outputs[0].name = f"{weight.name}.rows"
    operands = [table.outputs[0], node.inputs[1], inputs.scales]
    if inputs.zero_points is not None:
        operands.append(inputs.zero_points)
    attributes = {
        "bits": inputs.scheme.bits,
        "block_size": inputs.scheme.block_size,
        "quantize_axis": 1,
        "gather_axis": 0,
    }
    return [table, ir.node("GatherBlockQuantized", operands, attributes, domain=MICROSOFT, name=node.name)]


def _qmoe(node: ir.Node, up: QuantisedInputs, down: QuantisedInputs) -> ir.Node:
    up_scales, down_scales = _own(node, up.scales), _own(node, down.scales)
    operands: list[ir.Value | None] = [*node.inputs[:2], up.codes, up_scales, None, down.codes, down_scales]
    if up.zero_points is not None:
        operands += [None, None, None, None, up.zero_points, down.zero_points]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {
        "expert_weight_bits": up.scheme.bits,
        "block_size": up.scheme.block_size,
        "accuracy_level": _ACCURACY_LEVEL,
        "weights_prepacked": 0,
    }
    return ir.node("QMoE", operands, attributes, domain=MICROSOFT, name=node.name)


def _own(node: ir.Node, scales: ir.Value) -> ir.Value:
    """The scales under a name that no other node reads; the bytes are the same.

    Where a token has several experts, a layer has several nodes. ONNX Runtime's kernel takes the scales away when it
    packs the first, and the others would find none and compute with float weights.
    """
    if not scales.uses():
        return scales
    value = ir.Value(
        name=f"{scales.name}.of.{node.name}",
        shape=scales.shape,
        type=scales.type,
        const_value=scales.const_value,
    )
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, node: ir.Node, replacement: list[ir.Node]) -> None:
    new = replacement[-1].outputs[0]
    old = node.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], replacement, [old], [new])


def _name(value: ir.Value | None) -> str:
    assert value is not None and value.name is not None
    return value.name
