"""Float weights of a fused graph to 8 or 4 bits: MatMulNBits, QMoE and GatherBlockQuantized.

Findings on ONNX Runtime 1.32, CPU (each a test): 8-bit MatMulNBits with accuracy level 0 dequantises the whole weight
on every call, a hundred times slower than level 4, which rounds activations to int8 by block and costs about half a
percent of the output's range; 8-bit QMoE rounds activations at every level; zero points cost 4-bit MatMulNBits nothing
on AVX-512 and a third more time on AVX2; QMoE takes float16 scales beside float32 activations, MatMulNBits does not.
The pack of an 8-bit block has a sum in any case, so that zero points cost its kernel nothing (docs/performance.md). So
level 4 is set, and codes are symmetric but for 8-bit MatMulNBits, to which zero points are worth half a block.

Bits go where they show. A rounded embedding is in every layer's input: in 4 bits it costs a random model of a billion
weights more divergence than all its products. Routed experts are four fifths of that model's weights and a twentieth
of its divergence. The table is looked up by row, so 8 bits of it cost no time; in INT4 a head that is the same table
gets 4 bits of its own. Larger blocks save time, since beside the codes of each block the kernels read eight bytes.
Byte for byte, smaller blocks gain four times as much in attention as in a dense feed-forward (docs/performance.md); in
a mixture they gain 1.5%, since most of its divergence is that of the few tokens that change their expert.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

import onnx_ir as ir

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import initializer_bytes, load_fused_graph, save_graph
from llama4_pipeline.graph.quantize.calibration import Calibration, LayerByLayer
from llama4_pipeline.graph.quantize.gptq import Gptq
from llama4_pipeline.graph.quantize.k_quant import KQuant
from llama4_pipeline.graph.quantize.method import Method
from llama4_pipeline.graph.quantize.mixed import Mixed, mix_schemes
from llama4_pipeline.graph.quantize.plan import DeviceName, Preset, plan_schemes
from llama4_pipeline.graph.quantize.report import QuantizeReport, TensorReport
from llama4_pipeline.graph.quantize.rewrite import QuantisedInputs, rewrite_graph
from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.sensitivity import Group
from llama4_pipeline.graph.quantize.statistics import Statistics
from llama4_pipeline.graph.quantize.stream import Choice, StreamedWeight
from llama4_pipeline.graph.quantize.weights import Layout, Weight, find_weights, untie
from llama4_pipeline.graph.sidecars import copy_sidecars
from llama4_pipeline.methods import METHODS as TERMS
from llama4_pipeline.methods import MINIMUM_TOKENS, MIXED, STATISTICS_TOKENS, choose_method

_logger = logging.getLogger(__name__)

Precision = Literal["int8", "int4"]
_Entry = TypeVar("_Entry")

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (RoundToNearest(), KQuant(), Gptq(), Mixed())}
)
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "int8": Preset(
            experts=Scheme(bits=8, block_size=128, symmetric=True),
            shared=Scheme(bits=8, block_size=64, symmetric=False),
            feed_forward=Scheme(bits=8, block_size=32, symmetric=False),
            qkv=Scheme(bits=8, block_size=128, symmetric=False),
            attention_output=Scheme(bits=8, block_size=128, symmetric=False),
            head=Scheme(bits=8, block_size=64, symmetric=False),
            looked_up=Scheme(bits=8, block_size=16, symmetric=True),
            tied=Scheme(bits=8, block_size=64, symmetric=False),
        ),
        "int4": Preset(
            experts=Scheme(bits=4, block_size=256, symmetric=True),
            shared=Scheme(bits=4, block_size=256, symmetric=True),
            feed_forward=Scheme(bits=4, block_size=256, symmetric=True),
            qkv=Scheme(bits=4, block_size=128, symmetric=True),
            attention_output=Scheme(bits=4, block_size=128, symmetric=True),
            head=Scheme(bits=4, block_size=256, symmetric=True),
            looked_up=Scheme(bits=8, block_size=32, symmetric=True),
            tied=None,
        ),
    }
)
# Without experts that a token can change, attention is most of what shows.
DENSE_PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "int8": replace(
            PRESETS["int8"],
            feed_forward=Scheme(bits=8, block_size=64, symmetric=False),
            qkv=Scheme(bits=8, block_size=16, symmetric=False),
            attention_output=Scheme(bits=8, block_size=16, symmetric=False),
        ),
        "int4": replace(
            PRESETS["int4"],
            qkv=Scheme(bits=4, block_size=64, symmetric=True),
            attention_output=Scheme(bits=4, block_size=32, symmetric=True),
        ),
    }
)
FALLBACK = KQuant()  # for matrices of which calibration says too little


def quantize_graph(
    graph: Path,
    out: Path,
    *,
    precision: Precision,
    method: str | None = None,
    block_size: int | None = None,
    calibration: Calibration | None = None,
    device: DeviceName = "cpu",
) -> QuantizeReport:
    """Writes the quantised form of a fused graph directory.

    Weights are read once and written once, in pieces; what is resident does not grow with the model.

    Args:
        graph: directory of a fused graph, float32 or float16.
        out: directory to write: model, data, and the configuration and tokenizer files of `graph`.
        precision: "int8" or "int4".
        method: a name of `METHODS`; None takes the precision's default.
        block_size: inputs that share a scale, in all weights alike, tables too; None takes the preset's.
        calibration: token sequences, for the methods that look at the inputs of the weights.
        device: whose kernels are to run the graph: those of CUDA take blocks of 128 at most, and float16 activations,
            to which the graph is still to be converted.

    Raises:
        InputError: as `choose_method`, not a fused graph's directory, or a weight that cannot be quantised.
    """
    chosen = choose_method(method, precision, calibration=calibration, block_size=block_size, device=device)
    model = load_fused_graph(graph)
    observed, schemes = None, None
    sensitivity: dict[Group, float] = {}
    if calibration is not None:
        observed = LayerByLayer(graph, model.graph, out, calibration.limited(STATISTICS_TOKENS))
        if chosen == MIXED:
            weights = preset_weights(model.graph, precision)[0]
            schemes, sensitivity = mix_schemes(
                graph, weights, preset_schemes(weights, precision, device=device), calibration, device
            )
    report = quantize_model(
        model,
        precision=precision,
        method=chosen,
        block_size=block_size,
        schemes=schemes,
        observed=observed,
        device=device,
    )
    save_graph(model, out, share_weights=False)
    copy_sidecars(graph, out)
    whole = {group.weights[0]: value for group, value in sensitivity.items() if group.expert is None}
    by_expert: dict[str, list[float]] = {}
    for group, value in sensitivity.items():
        if group.expert is not None:
            by_expert.setdefault(group.weights[0], []).append(value)
    return replace(report(), sensitivity=whole, expert_sensitivity=by_expert)


def quantize_model(
    model: ir.Model,
    *,
    precision: Precision,
    method: str,
    block_size: int | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    observed: LayerByLayer | None = None,
    device: DeviceName = "cpu",
) -> Callable[[], QuantizeReport]:
    """Rewrites a fused graph in place; codes, scales and zero points are made when it is written.

    Args:
        model: as `quantize_graph` loads it, or with weights that are streamed from a checkpoint.
        precision: as `quantize_graph`.
        method: a name of `METHODS` that `choose_method` let pass.
        block_size: as `quantize_graph`.
        schemes: by weight name, fitted by `plan_schemes`; None gives all weights that of the precision.
        observed: gives the statistics for methods that need text.
        device: as `quantize_graph`.

    Returns:
        Makes the report; to be called once the graph was written, which is when errors of the weights are known.

    Raises:
        InputError: a method of another kind, or a weight that cannot be quantised.
    """
    started = time.monotonic()
    chosen = _named(METHODS, method, "method")
    weights, stayed_float = preset_weights(model.graph, precision, block_size)
    bytes_before = initializer_bytes(model.graph)
    if schemes is None:
        schemes = preset_schemes(weights, precision, block_size, device)
    choice = _Choice(chosen, observed)
    streamed = [StreamedWeight(weight, schemes[weight.name], choice.of(weight)) for weight in weights]
    inputs = {stream.weight.name: _register(model.graph, stream) for stream in streamed}
    rewrite_graph(model.graph, weights, inputs)
    bytes_after = initializer_bytes(model.graph)

    def report() -> QuantizeReport:
        return QuantizeReport(
            precision=precision,
            method=chosen.name,
            tensors=tuple(
                _tensor_report(
                    stream,
                    chosen.name,
                    choice.fallbacks.get(stream.weight.name, {}),
                    tuple(choice.tokens.get(stream.weight.name, ())),
                )
                for stream in streamed
            ),
            stayed_float=stayed_float,
            bytes_before=bytes_before,
            bytes_after=bytes_after,
            seconds=time.monotonic() - started,
        )

    return report


def preset_weights(
    graph: ir.Graph, precision: Precision, block_size: int | None = None
) -> tuple[list[Weight], dict[str, str]]:
    """What `find_weights` returns, after the head was untied where the preset of the precision wants that.

    Raises:
        InputError: an unknown precision, or a large matrix that no quantised operator covers.
    """
    if _named(PRESETS, precision, "precision").tied is None and block_size is None:
        untie(graph)
    return find_weights(graph)


def preset_schemes(
    weights: list[Weight], precision: Precision, block_size: int | None = None, device: DeviceName = "cpu"
) -> dict[str, Scheme]:
    """The fitted scheme of each weight by name: that of the precision's preset, or one block size for all.

    Raises:
        InputError: an unknown precision, or a width that no block fits.
    """
    mixture = any(weight.layout is Layout.EXPERTS for weight in weights)
    preset = _named(PRESETS if mixture else DENSE_PRESETS, precision, "precision")
    alike = replace(preset.feed_forward, block_size=block_size) if block_size else None
    wished = {weight.name: alike or preset.scheme(weight) for weight in weights}
    return plan_schemes(weights, wished, device)


class _Choice:
    """Which method quantises a matrix: the one asked for, or `FALLBACK` where calibration says too little."""

    def __init__(self, method: Method, observed: LayerByLayer | None) -> None:
        self.fallbacks: dict[str, dict[int, str]] = {}
        self.tokens: dict[str, list[int]] = {}
        self._method, self._observed = method, observed

    def of(self, weight: Weight) -> Choice:
        def choose(expert: int) -> tuple[Method, Statistics | None]:
            if self._observed is None:
                return self._method, None
            statistics = self._observed.statistics(weight.name, expert)
            is_table = statistics is None and weight.layout is Layout.ROWS_FIRST
            tokens = statistics.tokens if statistics else 0
            if not is_table:
                self.tokens.setdefault(weight.name, []).append(tokens)
            if not TERMS[self._method.name].needs_text or tokens >= MINIMUM_TOKENS:
                return self._method, statistics
            seen = "a table that is looked up" if is_table else f"{tokens} tokens"
            if not is_table:
                matrix = f"{weight.name}, expert {expert}" if weight.layout is Layout.EXPERTS else weight.name
                _logger.warning(
                    "%s is starved: %d calibration tokens reach it, %s takes %s's place; give more text",
                    matrix, tokens, FALLBACK.name, self._method.name,
                )  # fmt: skip
            self.fallbacks.setdefault(weight.name, {})[expert] = f"{FALLBACK.name}: {seen}"
            return FALLBACK, statistics

        return choose


def _named(table: Mapping[str, _Entry], name: str, what: str) -> _Entry:
    if name not in table:
        raise InputError(f"unknown {what} {name!r}: choose one of {', '.join(table)}")
    return table[name]


def _register(graph: ir.Graph, stream: StreamedWeight) -> QuantisedInputs:
    inputs = stream.initializers()
    for value in (inputs.codes, inputs.scales, inputs.zero_points):
        if value is not None:
            graph.register_initializer(value)
    return inputs


def _tensor_report(
    stream: StreamedWeight, method: str, fallbacks: dict[int, str], tokens: tuple[int, ...]
) -> TensorReport:
    weight, scheme = stream.weight, stream.scheme
    return TensorReport(
        name=weight.name,
        operators=tuple(sorted({node.op_type for node in weight.users})),
        method=method,
        bits=scheme.bits,
        block_size=scheme.block_size,
        symmetric=scheme.symmetric,
        bytes_before=weight.nbytes,
        bytes_after=weight.experts * scheme.nbytes(weight.rows, weight.inputs),
        relative_error=stream.relative_error,
        fallbacks=fallbacks,
        tokens=tokens,
    )
