"""Tokens that a graph sends to other experts than PyTorch does: where rounding does its first harm."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama4_pipeline.graph.validate.compare import StepComparison
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.probes import ProbedGraph, probes_of
from llama4_pipeline.graph.validate.uses import text_cases
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.progress import Progress

_TOKENS = 8192  # the share of five layers is then known to a tenth of a percent
_WINDOW = 512


def expert_change_share(checkpoint: Path | str, graph: Path, documents: Sequence[np.ndarray]) -> float | None:
    """Share of (token, MoE layer) pairs whose set of experts differs from that of transformers in float32.

    Args:
        checkpoint: directory or hub id that the graph was made from.
        graph: fused or portable, in any precision.
        documents: int64 [tokens] each; the first 8,192 tokens are looked at, in windows of 512.

    Returns:
        From 0 to 1; None for a dense model.

    Raises:
        InputError: the graph does not name its routers.
    """
    source = Checkpoint.open(checkpoint)
    routers = tuple(probe for probe in probes_of(source.architecture) if probe.block == "router_logits")
    if not routers:
        return None
    oracle, probed = Oracle(source.load_model("float32")), ProbedGraph(graph, routers)
    cases = list(text_cases(np.concatenate(documents)[:_TOKENS].tolist(), _WINDOW))
    tokens = changed = 0
    with Progress("expert changes", total=len(cases), unit="windows") as progress:
        for case in cases:
            comparison = StepComparison(routers, source.architecture.experts_per_token, exact=False)
            for step, expected, got in zip(case.steps, oracle.run(case), probed.run(case), strict=True):
                for change in comparison.compare(step, expected, got)[1]:
                    tokens, changed = tokens + change.tokens, changed + change.changed
            progress.advance()
    return changed / tokens
