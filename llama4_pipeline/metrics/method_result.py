"""The record of a method of quantization on one model, and the file of several."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llama4_pipeline.metrics.quality import QualityResult

FLOAT = ("fp32", "float32")
"""Precision and method of the graph that the others are made from."""


class MethodResult(BaseModel):
    """One graph."""

    model_config = ConfigDict(frozen=True)

    precision: str
    method: str
    """A name of `methods.METHODS`, or "float32"."""
    model_bytes: int
    """Of model.onnx and its data."""
    weight_bytes: int
    """Of the weights and their scales alone: a small model's file is in good part padding to pages."""
    decode_latency_ms: float
    """Time of a decoded token at batch 1, greedy: the lower of two medians, before and behind the judging of texts."""
    quality: QualityResult
    """On held-out text and tasks, beside PyTorch float32."""

    @property
    def name(self) -> str:
        """As a catalog's `quantization.compare` spells it."""
        return f"{self.precision} {self.method}"

    @property
    def loss(self) -> float:
        """Relative increase of perplexity over PyTorch float32."""
        assert self.quality.perplexity_ratio is not None
        return self.quality.perplexity_ratio - 1


def write_results(results: Iterable[MethodResult], file: Path) -> None:
    """Writes rows as JSON that `read_results` reads."""
    file.write_text(json.dumps([result.model_dump(mode="json") for result in results], indent=1))


def read_results(file: Path) -> list[MethodResult]:
    """Reads what `write_results` wrote."""
    return [MethodResult.model_validate(row) for row in json.loads(file.read_bytes())]
