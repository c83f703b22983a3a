"""Has the pipeline train a model and compare every method of quantization on it, or finds that done in its store."""

from dataclasses import dataclass
from pathlib import Path

from llama4_pipeline.artifacts.location import open_store
from llama4_pipeline.builders.files import METHODS_COMPARED
from llama4_pipeline.catalog import find_model, load_catalog
from llama4_pipeline.device import find_device
from llama4_pipeline.metrics.method_result import MethodResult, read_results
from llama4_pipeline.pipeline import run_stage
from llama4_pipeline.stages import STAGES

MODELS = ("tiny", "tiny-two-experts")
CATALOG = Path(__file__).with_name("models.toml")
_STAGES = (
    "checkpoint",
    "datasets",
    "exported_graph",
    "validated_graph",
    "simplified_graph",
    "optimized_graph",
    "quantization_tradeoff",
)


@dataclass(frozen=True)
class Compared:
    """The float graph and its quantized forms, and the seconds that each took to make, by its name."""

    rows: list[MethodResult]
    seconds: dict[str, float]


def measure_model(name: str) -> Compared:
    """One of `MODELS`, every method of its plan."""
    model, store, device = find_model(name, load_catalog(CATALOG)), open_store(), find_device()
    for stage in _STAGES:
        artifact = run_stage(STAGES[stage], model, store, device).artifact
    seconds = {name: each["seconds"] for name, each in artifact.facts["methods"].items()}
    return Compared(read_results(artifact.directory / METHODS_COMPARED), seconds)
