"""Quality of an engine, added to the record of its speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.files import JUDGED_ON
from llama4_pipeline.builders.requests import run_in
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.metrics.quality import QualityResult

FIGURES = tuple(name for name in QualityResult.model_fields if name in Measurement.model_fields)
"""What of the quality stands in the record of an engine."""


def with_quality(
    measurement: Measurement,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Path],
    graph: str | None = None,
) -> Measurement:
    """Judges an engine on held-out text and the two tasks, and beside PyTorch float32 where it is not that itself.

    A model with random weights is not judged, nor is an engine that could not be measured.

    Args:
        measurement: Of the engine.
        parameters: `trained`, `device` and `max_context`, so that all engines are judged in windows of one length.
        inputs: `checkpoint`, judged itself where no graph is named, the graph, and `datasets`, which random weights
            do without.
        graph: The input that is judged.

    Raises:
        CheckFailed: Logits hold NaN or infinity.
    """
    if not parameters["trained"] or measurement.unavailable:
        return measurement
    from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
    from llama4_pipeline.metrics.evaluate import evaluate, evaluate_graph
    from llama4_pipeline.metrics.perplexity import default_context
    from llama4_pipeline.runtime.engines import open_decoder

    device, checkpoint = parameters["device"], inputs["checkpoint"]
    data = {name: inputs["datasets"] / file for name, file in JUDGED_ON.items()}
    if graph:
        quality = evaluate_graph(inputs[graph], data, checkpoint, device=device)
    else:
        dtype = run_in(checkpoint, device)
        judged = open_decoder("pytorch", checkpoint=checkpoint, dtype=dtype, device=device)
        full = None
        if dtype != "float32":
            full = open_decoder("pytorch", checkpoint=checkpoint, device=device)
        tokenizer, stop_tokens = load_tokenizer(checkpoint), read_stop_tokens(checkpoint)
        context = min(default_context(judged), parameters["max_context"])
        quality = evaluate(judged, tokenizer, data, full, context=context, stop_tokens=stop_tokens)
    return measurement.model_copy(update={name: getattr(quality, name) for name in FIGURES})
