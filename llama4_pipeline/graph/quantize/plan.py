"""Which scheme each weight gets: the precision's own, fitted to the weight's width."""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.weights import Layout, Weight


def plan_schemes(weights: list[Weight], schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Fits schemes to what the operators accept.

    QMoE wants both of its weights in the same bits and blocks, without a partial block, and takes float16 scales
    whatever the graph's type; GatherBlockQuantized wants no partial block; MatMulNBits fills a partial block up, so it
    gets one only where no block divides its width, and takes scales of the graph's type.

    Args:
        weights: all weights of the graph.
        schemes: what is wished for, by weight name.

    Raises:
        InputError: a width that is no multiple of 16.
    """
    fitted = {}
    for weight in weights:
        scheme = schemes[weight.name]
        widths = [partner.inputs for partner in _same_operator(weight, weights)]
        if weight.layout is Layout.EXPERTS or weight.value.dtype is ir.DataType.FLOAT16:
            scheme = replace(scheme, scale_dtype="float16")
        whole = scheme.fit(*widths)
        if whole is None and weight.layout is not Layout.INPUTS_FIRST:
            raise InputError(
                f"{weight.name}: widths {sorted(set(widths))} are not all multiples of 16, the smallest block of "
                "QMoE and GatherBlockQuantized: this model stays in float16"
            )
        fitted[weight.name] = whole or scheme
    return fitted


def _same_operator(weight: Weight, weights: list[Weight]) -> list[Weight]:
    """The weight and, for experts, the other weight of the same MoE nodes."""
    if weight.layout is not Layout.EXPERTS:
        return [weight]
    return [other for other in weights if set(other.users) & set(weight.users)]
