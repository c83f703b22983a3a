"""Whole where memory allows it, else layer by layer."""

import logging
from collections.abc import Sequence
from pathlib import Path

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.validate.report import ValidationReport
from llama4_pipeline.graph.validate.streaming import validate_in_layers
from llama4_pipeline.graph.validate.sweep import Lengths
from llama4_pipeline.graph.validate.validation import validate_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.needs import whole_validation_bytes
from llama4_pipeline.preflight import room
from llama4_pipeline.units import format_bytes

_LOGIT_BYTES = 4
_logger = logging.getLogger(__name__)


def validate_within_memory(
    checkpoint: Checkpoint,
    graph: Path,
    *,
    lengths: Lengths = "default",
    batches: Sequence[int] = (1, 2, 4, 8),
    greedy_tokens: int = 64,
    text: Sequence[int] = (),
) -> ValidationReport:
    """Validates with both models in memory, or, where they do not fit, with one layer of each.

    Layer by layer there are no greedy continuations, and the inner values of all layers are kept, so a sweep
    (`default`, `all`) becomes two short lengths at two batches. The log says which way was taken.

    Args:
        checkpoint: What the graph was made from.
        graph: Directory with model.onnx.
        lengths: As for `validate_graph`.
        batches: Numbers of rows.
        greedy_tokens: As for `validate_graph`.
        text: As for `validate_graph`.

    Raises:
        InputError: As `validate_graph`; the logits of the largest batch alone, of both, do not fit; or there is a text
            and the models do not.
    """
    needed, there = whole_validation_bytes(checkpoint.architecture), room(graph).memory_bytes
    rows, tokens = max(batches, default=0), 1 if isinstance(lengths, str) else max(lengths, default=0)
    logits = 2 * _LOGIT_BYTES * rows * tokens * checkpoint.architecture.vocab_size
    if logits > there:
        raise InputError(
            f"logits of {rows:,} rows of {tokens:,} tokens, of both models, need {format_bytes(logits)} of memory and "
            f"{format_bytes(there)} are free: ask for fewer rows or tokens"
        )
    if needed <= there:
        return validate_graph(
            checkpoint, graph, lengths=lengths, batches=batches, greedy_tokens=greedy_tokens, text=text
        )
    if text:
        raise InputError(
            f"a text is compared with both models in memory, which needs {format_bytes(needed)} and "
            f"{format_bytes(there)} are free: leave the text out, or free memory"
        )
    _logger.info(
        "validation of both models as a whole needs %s of memory, %s are free: one layer of each at a time",
        format_bytes(needed),
        format_bytes(there),
    )
    if isinstance(lengths, str):
        return validate_in_layers(checkpoint, graph)
    return validate_in_layers(checkpoint, graph, lengths=lengths, batches=batches)
