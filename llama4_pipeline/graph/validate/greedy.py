"""Greedy continuations of the graph, through the decoder that serves it, against PyTorch's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import DynamicCache

from llama4_pipeline.graph.validate.compare import TIE_MARGIN, Tolerance
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.report import Failure, GreedyRow, Spot
from llama4_pipeline.graph.validate.uses import Step, make_case
from llama4_pipeline.runtime.decoder import position_ids
from llama4_pipeline.runtime.ort import OrtDecoder


def compare_greedy(
    oracle: Oracle,
    graph: Path,
    *,
    prompt_lengths: Sequence[int],
    batches: Sequence[int],
    new_tokens: int,
    tokens: Sequence[int],
    tolerance: Tolerance,
    max_context: int,
    threads: int = 0,
) -> tuple[list[GreedyRow], list[Failure]]:
    """Continues prompts with both, token by token.

    Rows of a batch have different lengths, padded on the left. Positions count real tokens, as
    transformers' `generate` does.

    Args:
        oracle: The reference.
        graph: Graph directory; its cache is bound in place, as when it serves.
        prompt_lengths: Each is continued at each batch, as far as the graph holds.
        batches: Numbers of rows.
        new_tokens: Tokens to continue.
        tokens: Where prompts come from.
        tolerance: Of logits, and whether tokens must be identical.
        max_context: What the graph holds.
        threads: Of one operator; 0 is one per core.
    """
    rows, failures = [], []
    decoder = OrtDecoder(graph, threads=threads)
    try:
        for length in prompt_lengths:
            for batch in batches:
                steps = min(new_tokens, max_context - length)
                if steps < 1:
                    continue
                case = make_case(
                    "prefill", length, batch, tokens=tokens, padding="left", max_context=max_context
                )
                decoder.reset()
                row, spot = _continue(oracle, decoder, case.steps[0], steps, tolerance)
                rows.append(row)
                failures += _failures(row, spot, tolerance)
    finally:
        decoder.close()
    return rows, failures


def _continue(
    oracle: Oracle, decoder: OrtDecoder, prompt: Step, steps: int, tolerance: Tolerance
) -> tuple[GreedyRow, Spot]:
    """Decodes until a row differs; both are always fed the reference's tokens."""
    cache = DynamicCache()
    ids, mask = prompt.input_ids, prompt.attention_mask
    worst, row, identical, tie = 0.0, 0, 0, False
    for _ in range(steps):
        step = Step(ids, mask, position_ids(mask, ids.shape[1]))
        expected = oracle.forward(step, cache)[:, -1].numpy()
        got = decoder.forward(ids, mask, logits_to_keep=1)[:, -1]
        # The last column of a left-padded prompt and of every decoded step is real in all rows.
        error = np.abs(expected - got).max(axis=-1) / expected.std()
        if not error.max() <= worst:
            worst, row = float(error.max()), int(error.argmax())
        differs = expected.argmax(axis=-1) != got.argmax(axis=-1)
        if differs.any():
            ranked = np.sort(expected[differs], axis=-1)
            margin = float((ranked[:, -1] - ranked[:, -2]).max())
            tie = margin <= 2 * min(tolerance.logits_error, TIE_MARGIN) * float(expected.std())
            row = int(differs.argmax())
            break
        identical += 1
        ids = expected.argmax(axis=-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    spot = Spot("greedy", prompt.sequence, prompt.batch, "left", "mask", row, mask.shape[1] - 1)
    return GreedyRow(prompt.sequence, prompt.batch, steps, identical, worst, tie), spot


def _failures(row: GreedyRow, spot: Spot, tolerance: Tolerance) -> list[Failure]:
    if row.logits_error > tolerance.logits_error or np.isnan(row.logits_error):
        return [Failure(-1, "logits", "error", row.logits_error, tolerance.logits_error, spot)]
    if tolerance.identical_greedy and row.identical < row.tokens and not row.tie:
        return [Failure(-1, "greedy", "identical tokens", row.identical, row.tokens, spot)]
    return []
