"""What is asked of an engine for a stage's measurement."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.device import pytorch_dtype

if TYPE_CHECKING:
    from llama4_pipeline.metrics.isolated import BenchRequest


def request(
    engine: str, parameters: Mapping[str, Any], *, checkpoint: Path | None = None, graph: Path | None = None
) -> "BenchRequest":
    """What to measure of an engine, by the model's benchmark plan."""
    from llama4_pipeline.metrics.isolated import BenchRequest

    plan, device = parameters["benchmark"], parameters["device"]
    return BenchRequest(
        engine=engine,
        model=parameters["model"],
        graph=graph,
        checkpoint=checkpoint,
        prompt_tokens=plan["prompt_tokens"],
        new_tokens=plan["new_tokens"],
        batch=tuple(plan["batch_sizes"]),
        repeats=plan["repeats"],
        dtype=run_in(checkpoint, device) if checkpoint else "float32",
        device=device,
    )


def run_in(checkpoint: Path, device: str) -> str:
    """The type that PyTorch runs a checkpoint in on a device."""
    from llama4_pipeline.llama4.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    return pytorch_dtype(opened.dtype, opened.architecture.has_experts, device)
