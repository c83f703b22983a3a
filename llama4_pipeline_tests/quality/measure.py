"""Trains a model, or finds it trained in the pipeline's store, and measures every method of quantization on it."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama4_pipeline.artifacts.location import artifacts_root
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import find_model, load_catalog
from llama4_pipeline.device import find_device
from llama4_pipeline.llama4.tokenizer import load_tokenizer
from llama4_pipeline.methods import METHODS, QAT
from llama4_pipeline.metrics.evaluate import QualityResult, evaluate, text_documents
from llama4_pipeline.metrics.expert_changes import expert_change_share
from llama4_pipeline.pipeline import run_stage
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline.stages import STAGES

MODELS = ("tiny", "tiny-two-experts")
_ROWS = (
    ("fp32", "float32"),
    *(("int8", name) for name, terms in METHODS.items() if "int8" in terms.precisions and name != QAT),
    *(("int4", name) for name, terms in METHODS.items() if "int4" in terms.precisions),
)
CATALOG = Path(__file__).with_name("models.toml")
_STAGES = (
    "checkpoint",
    "datasets",
    "exported_graph",
    "validated_graph",
    "simplified_graph",
    "optimized_graph",
)
_DATA = ("validation", "summarise", "classify")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One graph.

    Attributes:
        model: of the catalog.
        precision: "fp32", "int8" or "int4".
        method: of `llama4-pipeline quantize --method`.
        bytes: of model.onnx and its data.
        seconds: that the quantization took.
        quality: on the model's held-out text and tasks.
    """

    model: str
    precision: str
    method: str
    bytes: int
    seconds: float
    quality: QualityResult

    @property
    def loss(self) -> float:
        """Relative increase of perplexity over PyTorch float32."""
        assert self.quality.perplexity_ratio is not None
        return self.quality.perplexity_ratio - 1

    def __str__(self) -> str:
        return f"{self.model} {self.precision} {self.method}"


def measure_model(name: str, scratch: Path, only: str = "") -> list[Row]:
    """Quantizes and measures a model; its checkpoint and float graph stay in the pipeline's store.

    Args:
        name: one of `MODELS`.
        scratch: where quantized graphs stand while they are measured.
        only: measures only the methods that contain this.
    """
    inputs = _stages(name)
    data = {each: inputs["datasets"] / f"{each}.jsonl" for each in _DATA}
    tokenizer = load_tokenizer(inputs["checkpoint"])
    documents = text_documents(tokenizer, data)
    reference = _Remembered(open_decoder("pytorch", checkpoint=inputs["checkpoint"]))
    rows = []
    for precision, method in _ROWS:
        if only not in f"{precision} {method}":
            continue
        start = time.monotonic()
        graph = _quantized(inputs, precision, method, scratch / f"{precision}-{method}")
        seconds = time.monotonic() - start
        quality = evaluate(open_decoder("onnxruntime", graph=graph), tokenizer, data, reference)
        share = expert_change_share(inputs["checkpoint"], graph, documents)
        quality = quality.model_copy(update={"expert_change_share": share})
        size = sum(file.stat().st_size for file in graph.glob("model.onnx*"))
        rows.append(Row(name, precision, method, size, seconds, quality))
        _logger.info("%s: perplexity %+.3f%%, %d bytes, %.0f s", rows[-1], 100 * rows[-1].loss, size, seconds)
        if graph.is_relative_to(scratch):
            shutil.rmtree(graph)
    return rows


def _stages(name: str) -> dict[str, Path]:
    """The model's checkpoint, data sets and float graph, made by the pipeline's own stages."""
    model, store, device = find_model(name, load_catalog(CATALOG)), Store(artifacts_root()), find_device()
    return {stage: run_stage(STAGES[stage], model, store, device).artifact.directory for stage in _STAGES}


def _quantized(inputs: dict[str, Path], precision: str, method: str, out: Path) -> Path:
    from llama4_pipeline.builders.quantize import build

    if precision == "fp32":
        return inputs["optimized_graph"]
    out.mkdir(parents=True)
    build(inputs, {"precision": precision, "method": method}, out)
    return out


class _Remembered:
    """An engine that is asked the same again and again: what it said to a fresh cache is kept."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._said = decoder, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def forward(self, input_ids: np.ndarray, *arguments: Any, **keywords: Any) -> np.ndarray:
        key = (input_ids.tobytes(), str(keywords))
        if key not in self._said:
            self._said[key] = self._decoder.forward(input_ids, *arguments, **keywords)
        return self._said[key]
