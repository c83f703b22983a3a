"""How much the model's predictions move when one weight alone is quantised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.quantize.calibration import Calibration, graph_inputs
from llama4_pipeline.graph.quantize.k_quant import KQuant
from llama4_pipeline.graph.quantize.plan import plan_schemes
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize
from llama4_pipeline.graph.quantize.weights import Layout, Weight, find_weights, untie
from llama4_pipeline.graph.session import open_session
from llama4_pipeline.probabilities import kl_divergence, log_softmax
from llama4_pipeline.progress import Progress

_ROWS = 16  # tokens whose probabilities are in memory at a time, in float64


@dataclass(frozen=True)
class Group:
    """Weights that are quantised alike: those that one operator reads (both of a MoE), or a single one.

    Attributes:
        weights: their names.
        expert: the expert that is looked at alone; None for all.
    """

    weights: tuple[str, ...]
    expert: int | None = None


def weight_groups(weights: Sequence[Weight], *, by_expert: bool = False) -> list[Group]:
    """The groups of a graph's weights, in order; with `by_expert`, each expert of a stack by itself."""
    groups: dict[tuple[str, ...], int] = {}
    for weight in weights:
        together = tuple(other.name for other in weights if other.users == weight.users)
        groups[together if weight.layout is Layout.EXPERTS else (weight.name,)] = weight.experts
    if not by_expert:
        return [Group(names) for names in groups]
    return [
        Group(names, expert if count > 1 else None)
        for names, count in groups.items()
        for expert in range(count)
    ]


def measure_sensitivity(
    graph: Path, groups: Sequence[Group], scheme: Scheme, calibration: Calibration
) -> dict[Group, float]:
    """Mean KL divergence, in nats per token, of the float graph from itself with one group rounded.

    The float graph is opened once, its weights mapped; each group's values are put in their place in turn.

    Args:
        graph: directory of the fused float graph.
        groups: what is rounded together.
        scheme: to which, fitted to each weight (the codes are those of `k_quant`).
        calibration: the text, in full: its length sets the time.

    Raises:
        InputError: a width to which the scheme does not fit.
    """
    model = load_graph(graph)
    untie(model.graph)
    weights = {weight.name: weight for weight in find_weights(model.graph)[0]}
    schemes = plan_schemes(list(weights.values()), dict.fromkeys(weights, scheme))
    session = _open(graph, model, [name for group in groups for name in group.weights])
    sequences = calibration.cut_for(model).sequences
    flows = [graph_inputs(model.graph, sequence) for sequence in sequences]
    reference = [_logits(session, flow) for flow in flows]
    found = {}
    with Progress("sensitivity", len(groups), "weights") as progress:
        for group in groups:
            rounded = {name: _rounded(weights[name], schemes[name], group.expert) for name in group.weights}
            moved = (
                _divergence(expected, _logits(session, flow | rounded))
                for expected, flow in zip(reference, flows, strict=True)
            )
            found[group] = float(np.concatenate(list(moved)).mean())
            progress.advance()
    return found


def _open(directory: Path, model: ir.Model, names: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session in which the named weights are inputs with a default."""
    known = {value.name for value in model.graph.inputs}
    for name in dict.fromkeys(names):
        if name not in known:
            model.graph.inputs.append(model.graph.initializers[name])
    return open_session(model, directory)


def _rounded(weight: Weight, scheme: Scheme, only: int | None) -> np.ndarray:
    """The weight as the quantised operator would see it, in the layout and dtype of its initializer."""
    method = KQuant()
    step = max(method.piece_weights // weight.inputs, 1)

    def pieces() -> Iterator[np.ndarray]:
        for expert, block in weight.blocks():
            for start in range(0, len(block), step):
                rows = np.ascontiguousarray(block[start : start + step], np.float32)
                touched = only is None or expert == only
                yield dequantize(method.quantize(rows, scheme), scheme, weight.inputs) if touched else rows

    assert weight.value.dtype is not None
    rows = np.concatenate(list(pieces())).astype(weight.value.dtype.numpy())
    if weight.layout is Layout.EXPERTS:
        return rows.reshape(weight.experts, weight.rows, weight.inputs)
    return np.ascontiguousarray(rows.T) if weight.layout is Layout.INPUTS_FIRST else rows


def _logits(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Float32 [tokens, vocab]."""
    logits = np.asarray(session.run(["logits"], inputs)[0])
    return logits.reshape(-1, logits.shape[-1])


def _divergence(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Nats of each token, not below 0, where rounding may have it; from logits [tokens, vocab]."""
    starts = range(0, len(expected), _ROWS)
    pairs = ((each[start : start + _ROWS] for each in (expected, actual)) for start in starts)
    return np.concatenate([kl_divergence(*map(log_softmax, pair)) for pair in pairs]).clip(min=0)
