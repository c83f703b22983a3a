"""The data sets: calibration, validation, and the two tasks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama4_pipeline.data.coverage import ExpertShares
    from llama4_pipeline.data.samples import Sample


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes the JSON lines of every data set.

    Args:
        inputs: `checkpoint`, whose routers tell which experts the calibration text reaches, and its tokenizer.
        parameters: `sources`, the user's own data by data set, if there are any; `cover_experts`, whether the model
            is asked; `max_context`, which the tasks must fit, where quality is measured.
        out: The directory to fill.

    Returns:
        Samples by data set, and of a mixture the tokens by layer and expert.

    Raises:
        InputError: A bad row, named by file and line, a sample that stands in two data sets, or a task without room.
    """
    from llama4_pipeline.data.datasets import DataSources, build_datasets

    sources = DataSources(**parameters.get("sources", {}))
    find_experts = partial(_experts, inputs["checkpoint"]) if parameters["cover_experts"] else None
    max_context = parameters.get("max_context")
    accept = _room(inputs["checkpoint"], max_context) if max_context else None
    report = build_datasets(out, sources=sources, accept=accept, find_experts=find_experts)
    coverage = report.coverage
    return {
        "datasets": report.to_json(),
        "tokens_by_expert": {f"layer {layer}": tokens for layer, tokens in coverage.tokens.items()}
        if coverage
        else {},
        "starved_experts": [f"layer {layer}, expert {expert}" for layer, expert in coverage.starved]
        if coverage
        else [],
    }


def _room(checkpoint: Path, max_context: int) -> "Callable[[Sequence[Sample]], None]":
    from llama4_pipeline.llama4.tokenizer import load_tokenizer
    from llama4_pipeline.metrics.tasks import require_room

    return partial(require_room, load_tokenizer(checkpoint), max_context=max_context)


def _experts(directory: Path) -> "ExpertShares | None":
    """Of a mixture; the share is what quantization needs of the tokens that it looks at."""
    from llama4_pipeline.data.coverage import ExpertShares
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.llama4.routing import ExpertReach
    from llama4_pipeline.methods import MINIMUM_TOKENS, STATISTICS_TOKENS

    checkpoint = Checkpoint.open(directory)
    if not any(layer.experts for layer in checkpoint.architecture.layers):
        return None
    reach = ExpertReach(checkpoint.load_model("float32"), checkpoint.load_tokenizer())
    return ExpertShares(reach, MINIMUM_TOKENS / STATISTICS_TOKENS)
