"""Which scheme each weight gets: by what reads it, fitted to its width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.weights import Layout, Weight, is_small
from llama4_pipeline.llama4.architecture import EMBEDDING, LM_HEAD, Architecture

DeviceName = Literal["cpu", "cuda"]
_SMALLEST_BLOCK = 16
_SMALLEST_EXPERT_BLOCK_ON_CUDA, _LARGEST_BLOCK_ON_CUDA = 32, 128


@dataclass(frozen=True)
class Preset:
    """The schemes of a precision by what reads a weight.

    Attributes:
        experts: stacks of experts: most of the bytes, and each token sees a few of them.
        shared: the expert that sees every token.
        feed_forward: matrices of dense feed-forwards.
        qkv: attention's query, key and value.
        attention_output: the projection behind attention.
        head: the output projection.
        looked_up: a table whose rows are only looked up, so that its bits cost no time.
        tied: a table that is the head too, read whole for every token. None: the head gets a matrix of its own.
    """

    experts: Scheme
    shared: Scheme
    feed_forward: Scheme
    qkv: Scheme
    attention_output: Scheme
    head: Scheme
    looked_up: Scheme
    tied: Scheme | None

    def scheme(self, weight: Weight) -> Scheme:
        """The scheme that a weight is wished to have, for `plan_schemes` to fit.

        Raises:
            ValueError: a tied table, and the preset wants the head apart.
        """
        if weight.layout is Layout.EXPERTS:
            return self.experts
        if weight.is_table:
            if all(node.op_type != "MatMul" for node in weight.users):
                return self.looked_up
            if self.tied is None:
                raise ValueError(f"{weight.name} is the head too: untie it before it is planned")
            return self.tied
        if weight.name == LM_HEAD:
            return self.head
        if "shared_expert" in weight.name:
            return self.shared
        if "self_attn" in weight.name:
            return self.qkv if "qkv_proj" in weight.name else self.attention_output
        return self.feed_forward


def require_widths(architecture: Architecture, device: DeviceName) -> None:
    """Refuses what `plan_schemes` would refuse in the default blocks, before there is a graph.

    Raises:
        InputError: a width of the embedding or of experts that is no multiple of 16, on CUDA for experts of 32.
    """
    hidden, on_cuda = architecture.hidden_size, device == "cuda"
    if not is_small((architecture.vocab_size, hidden)) and hidden % _SMALLEST_BLOCK:
        raise _no_block(EMBEDDING, [hidden], on_cuda=False)
    for layer in architecture.layers:
        widths = [hidden, layer.intermediate_size]
        if layer.is_moe and any(width % _smallest_block(on_cuda) for width in widths):
            raise _no_block(f"the experts of layer {layer.index}", widths, on_cuda)


def plan_schemes(
    weights: list[Weight], schemes: Mapping[str, Scheme], device: DeviceName = "cpu"
) -> dict[str, Scheme]:
    """Fits schemes to what the operators accept.

    QMoE wants both of its weights in the same bits and blocks, without a partial block, and takes float16 scales
    whatever the graph's type; GatherBlockQuantized wants no partial block; MatMulNBits fills a partial block up, so it
    gets one where a kernel reads no more of them than of blocks that divide its width, and takes scales of the graph's
    type. On CUDA a block has 128 inputs at most, and in QMoE 32 at least.

    Args:
        weights: all weights of the graph.
        schemes: what is wished for, by weight name.
        device: whose kernels are to run them; weights in float16 are for CUDA in any case.

    Raises:
        InputError: a width that is no multiple of 16, on CUDA for experts of 32.
    """
    fitted = {}
    for weight in weights:
        scheme, half = schemes[weight.name], weight.value.dtype is ir.DataType.FLOAT16
        on_cuda = device == "cuda" or half
        if on_cuda:
            scheme = replace(scheme, block_size=min(scheme.block_size, _LARGEST_BLOCK_ON_CUDA))
        if weight.layout is Layout.EXPERTS or half:
            scheme = replace(scheme, scale_dtype="float16")
        if all(node.op_type == "MatMul" for node in weight.users):
            fitted[weight.name] = scheme.fit_filled_up(weight.inputs)
        else:
            fitted[weight.name] = _in_whole_blocks(weight, scheme, weights, on_cuda)
    return fitted


def _in_whole_blocks(weight: Weight, scheme: Scheme, weights: list[Weight], on_cuda: bool) -> Scheme:
    on_cuda = on_cuda and weight.layout is Layout.EXPERTS
    smallest = _smallest_block(on_cuda)
    widths = [partner.inputs for partner in _same_operator(weight, weights)]
    if scheme.block_size < smallest:
        raise InputError(
            f"QMoE on CUDA has no kernel for blocks of {scheme.block_size}: ask for {smallest} or more"
        )
    fitted = scheme.fit(*widths)
    if fitted is None or fitted.block_size < smallest:
        raise _no_block(weight.name, widths, on_cuda)
    return fitted


def _smallest_block(on_cuda: bool) -> int:
    """Of QMoE on CUDA, or of QMoE and GatherBlockQuantized elsewhere."""
    return _SMALLEST_EXPERT_BLOCK_ON_CUDA if on_cuda else _SMALLEST_BLOCK


def _no_block(name: str, widths: list[int], on_cuda: bool) -> InputError:
    operators = "QMoE on CUDA" if on_cuda else "QMoE and GatherBlockQuantized"
    return InputError(
        f"{name}: widths {sorted(set(widths))} are not all multiples of {_smallest_block(on_cuda)}, the smallest "
        f"block of {operators}: this model stays in float16"
    )


def _same_operator(weight: Weight, weights: list[Weight]) -> list[Weight]:
    """The weight and, for experts, the other weight of the same MoE nodes."""
    if weight.layout is not Layout.EXPERTS:
        return [weight]
    return [other for other in weights if set(other.users) & set(weight.users)]
