"""Tokens that a graph sends to other experts than PyTorch does: where rounding does its first harm."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama4_pipeline.graph.validate.compare import StepComparison
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.probes import ProbedGraph, StepValues, probes_of
from llama4_pipeline.graph.validate.uses import text_cases
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.llama4.tokenizer import require_in_vocabulary
from llama4_pipeline.progress import Progress

_TOKENS = 8192  # the share of five layers is then known to a tenth of a percent
_WINDOW = 512


class ReferenceRouting:
    """What the routers of transformers in float32 say of a text, computed once; the model does not stay in memory.

    Args:
        checkpoint: directory or hub id.
        documents: int64 [tokens] each; the first 8,192 tokens are looked at, in windows of 512.
        max_context: tokens that the graphs hold, which shortens the windows.

    Raises:
        InputError: a token id is outside the vocabulary.
    """

    def __init__(self, checkpoint: Path | str, documents: Sequence[np.ndarray], max_context: int) -> None:
        source = Checkpoint.open(checkpoint)
        self._experts_per_token = source.architecture.experts_per_token
        self._routers = tuple(
            probe for probe in probes_of(source.architecture) if probe.block == "router_logits"
        )
        tokens = np.concatenate(documents)[:_TOKENS].tolist()
        require_in_vocabulary(tokens, source.architecture.vocab_size, source.directory)
        self._cases = list(text_cases(tokens, min(_WINDOW, max_context)))
        self._said = self._ask(Oracle(source.load_model("float32"))) if self._routers else []

    def change_share(self, graph: Path, device: str = "cpu") -> float | None:
        """Share of (token, MoE layer) pairs whose set of experts differs in a graph made from the checkpoint.

        Args:
            graph: fused or portable, in any precision.
            device: that the graph was made for; it is asked on the CPU.

        Returns:
            From 0 to 1; None for a dense model, and for a graph made for another device.

        Raises:
            InputError: the graph does not name its routers.
        """
        if not self._routers or device != "cpu":
            return None
        probed = ProbedGraph(graph, self._routers)
        tokens = changed = 0
        with Progress("expert changes", total=len(self._cases), unit="windows") as progress:
            for case, said in zip(self._cases, self._said, strict=True):
                comparison = StepComparison(self._routers, self._experts_per_token, exact=False)
                for step, expected, got in zip(case.steps, said, probed.run(case), strict=True):
                    for change in comparison.compare(step, expected, got)[1]:
                        tokens, changed = tokens + change.tokens, changed + change.changed
                progress.advance()
        return changed / tokens

    def _ask(self, oracle: Oracle) -> list[list[StepValues]]:
        """The router logits of every case, by step."""
        said = []
        with Progress("routing of PyTorch", total=len(self._cases), unit="windows") as progress:
            for case in self._cases:
                said.append([self._of_routers(step) for step in oracle.run(case)])
                progress.advance()
        return said

    def _of_routers(self, step: StepValues) -> StepValues:
        return StepValues({router.name: step.values[router.name] for router in self._routers})
