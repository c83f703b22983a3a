"""Calibration: a fused graph runs layer by layer over token sequences, and the inputs of its weights are summed up.

What flows into a layer comes from the quantised layers before it, beside what would come from float ones, so that later
layers make up for the errors of earlier ones. What is resident is one layer, its moments, and two hidden states of all
tokens.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.quantize.blocks import expert_matrix
from llama4_pipeline.graph.quantize.segments import Segment, cut_by_layer, open_segment
from llama4_pipeline.graph.quantize.statistics import Moments, Statistics
from llama4_pipeline.graph.quantize.weights import Layout, Weight, find_weights, untie
from llama4_pipeline.metadata import CHUNK_SIZE_KEY, MAX_CONTEXT_KEY, tokens_in
from llama4_pipeline.progress import Progress

_Flow = dict[str, np.ndarray]  # of one sequence: the values that enter a layer, and the graph's inputs


@dataclass(frozen=True)
class Calibration:
    """Token sequences that stand for what the model will see.

    Attributes:
        sequences: int64 [tokens] each.
    """

    sequences: tuple[np.ndarray, ...]

    def limited(self, tokens: int) -> "Calibration":
        """Sequences spread evenly over all, with about so many tokens at most."""
        total = sum(len(sequence) for sequence in self.sequences)
        if total <= tokens:
            return self
        count = max(round(len(self.sequences) * tokens / total), 1)
        picked = np.linspace(0, len(self.sequences) - 1, count).round().astype(int)
        return Calibration(tuple(self.sequences[i] for i in picked))

    def cut_for(self, model: ir.Model) -> "Calibration":
        """The sequences cut to what a graph takes at once: its context, or a chunk where layers attend in chunks."""
        limits = [tokens_in(model.metadata_props, key) for key in (MAX_CONTEXT_KEY, CHUNK_SIZE_KEY)]
        size = min(filter(None, limits), default=0)
        if not size:
            return self
        return Calibration(
            tuple(
                sequence[start : start + size]
                for sequence in self.sequences
                for start in range(0, len(sequence), size)
            )
        )


@dataclass(frozen=True)
class _Routed:
    """What a stack of experts sees of all tokens.

    Attributes:
        inputs: float32 [T, H], behind quantised layers.
        unrounded: float32 [T, H], behind float layers.
        experts: int64 [T], to which the router sends the inputs.
    """

    inputs: np.ndarray
    unrounded: np.ndarray
    experts: np.ndarray


class LayerByLayer:
    """Statistics of every weight's inputs, gathered while the graph is quantised from front to back."""

    def __init__(self, graph: Path, quantised: ir.Graph, out: Path, calibration: Calibration) -> None:
        """Runs nothing yet.

        Args:
            graph: directory of the float graph.
            quantised: the graph that is being written to `out`; a weight of it is read from there once it is written.
            calibration: the sequences.
        """
        self._directory, self._out, self._quantised = graph, out, quantised
        model = load_graph(graph)
        self._float = model.graph
        untie(self._float)
        self._segments = cut_by_layer(self._float, find_weights(self._float)[0])
        sequences = calibration.cut_for(model).sequences
        self._flows = [graph_inputs(self._float, sequence) for sequence in sequences]
        self._unrounded = [dict(flow) for flow in self._flows]
        self._current = -1
        self._moments: dict[str, Moments] = {}
        self._routed: dict[tuple[ir.Node, ...], _Routed] = {}  # by the nodes that use a stack

    def statistics(self, name: str, expert: int) -> Statistics | None:
        """Of the inputs of one matrix; None for a table that is looked up, and for an expert that no token reached.

        Weights must be asked for in the order of the graph.
        """
        position = next(
            index
            for index, segment in enumerate(self._segments)
            if any(weight.name == name for weight in segment.weights)
        )
        while self._current < position:
            self._advance()
        weight = next(weight for weight in self._segments[position].weights if weight.name == name)
        if weight.layout is Layout.EXPERTS:
            return self._expert_statistics(weight, expert)
        return self._moments[name].statistics() if name in self._moments else None

    def _advance(self) -> None:
        """Runs the current layer as quantised, then the next as float while looking at its inputs."""
        if self._current >= 0:
            segment = self._segments[self._current]
            for [(flow, values)] in self._run(
                self._quantised, self._out, segment, segment.leaving, "propagate", self._flows
            ):
                _hand_over(segment, flow, values)
        self._current += 1
        self._moments, self._routed = {}, {}
        self._observe(self._segments[self._current])

    def _observe(self, segment: Segment) -> None:
        linear = [
            (weight, node) for weight in segment.weights for node in weight.users if node.op_type == "MatMul"
        ]
        routed = {weight.users for weight in segment.weights if weight.layout is Layout.EXPERTS}
        seen = {
            value.name or ""
            for node in (*(node for _, node in linear), *chain.from_iterable(routed))
            for value in node.inputs[: _looked_at(node)]
            if value
        }
        moments: dict[str, Moments] = defaultdict(Moments)
        tokens: dict[tuple[ir.Node, ...], tuple[list[np.ndarray], ...]] = {
            nodes: ([], [], []) for nodes in routed
        }
        outputs, streams = (*sorted(seen), *segment.leaving), (self._flows, self._unrounded)
        for [(_, values), (flow, unrounded)] in self._run(
            self._float, self._directory, segment, outputs, "observe", *streams
        ):
            for weight, node in linear:
                moments[weight.name].add(_rows(values, node, 0), _rows(unrounded, node, 0))
            for nodes, (inputs, unrounded_inputs, experts) in tokens.items():
                for node in nodes:
                    inputs.append(_rows(values, node, 0))
                    unrounded_inputs.append(_rows(unrounded, node, 0))
                    experts.append(_rows(values, node, 1).argmax(axis=1))
            _hand_over(segment, flow, unrounded)
        self._moments = moments
        self._routed = {nodes: _Routed(*map(_joined, parts)) for nodes, parts in tokens.items()}

    def _expert_statistics(self, weight: Weight, expert: int) -> Statistics | None:
        """Of the tokens that the router sends to the expert: as they are, or as the down projection sees them."""
        routed = self._routed[weight.users]
        mine = np.flatnonzero(routed.experts == expert)
        up = weight.users[0].inputs[2]
        assert up is not None and up.const_value is not None
        matrix = expert_matrix(up.const_value, expert).astype(np.float32) if up.name != weight.name else None
        moments = Moments()
        for start in range(0, len(mine), _BATCH):
            batch = mine[start : start + _BATCH]
            inputs, unrounded = routed.inputs[batch], routed.unrounded[batch]
            if matrix is not None:
                inputs, unrounded = _activated(inputs @ matrix.T), _activated(unrounded @ matrix.T)
            moments.add(inputs, unrounded)
        return moments.statistics()

    def _run(
        self,
        graph: ir.Graph,
        directory: Path,
        segment: Segment,
        outputs: tuple[str, ...],
        task: str,
        *streams: list[_Flow],
    ) -> Iterator[list[tuple[_Flow, _Flow]]]:
        """For each sequence its flow in each of the streams, and the outputs of a segment for it."""
        entering = {name: streams[0][0][name].dtype for name in segment.entering}
        session = open_segment(graph, entering, outputs, directory)
        names = [value.name for value in session.get_inputs()]
        title = f"{task} part {self._current + 1}/{len(self._segments)}"

        def run(flow: _Flow) -> tuple[_Flow, _Flow]:
            values = session.run(list(outputs), {name: flow[name] for name in names})
            return flow, dict(zip(outputs, values, strict=True))

        with Progress(title, len(self._flows), "sequences") as progress:
            for flows in zip(*streams, strict=True):
                yield [run(flow) for flow in flows]
                progress.advance()


_BATCH = 2048  # tokens


def graph_inputs(graph: ir.Graph, sequence: np.ndarray) -> dict[str, np.ndarray]:
    """One sequence as the graph's inputs, with an empty cache."""
    ids = np.asarray(sequence, np.int64)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    for value in graph.inputs:
        if (
            value.name is not None
            and value.name.startswith("past_key_values.")
            and value.shape
            and value.dtype
        ):
            _, heads, _, width = value.shape
            assert isinstance(heads, int) and isinstance(width, int)
            inputs[value.name] = np.zeros((1, heads, 0, width), value.dtype.numpy())
    return inputs


def _hand_over(segment: Segment, flow: _Flow, values: _Flow) -> None:
    """Puts what leaves a segment in the place of what entered it."""
    for name in segment.entering:
        flow.pop(name, None)
    flow.update((name, values[name]) for name in segment.leaving)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array of all, which are given up."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _activated(both: np.ndarray) -> np.ndarray:
    """SiLU of the even columns times the odd ones: [T, 2 I] to [T, I]."""
    gate, linear = both[:, 0::2], both[:, 1::2]
    return gate / (1 + np.exp(-gate)) * linear


def _looked_at(node: ir.Node) -> int:
    """Leading inputs that statistics are made of: tokens, and router logits of a MoE."""
    return 2 if node.op_type == "MoE" else 1


def _rows(values: dict[str, np.ndarray], node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None and value.name is not None
    array = values[value.name]
    return array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
