"""What methods of quantization lose, what they weigh and how fast they are: each graph is judged and thrown away."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llama4_pipeline.graph.external_data import initializer_bytes, load_graph
from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
from llama4_pipeline.metadata import exported_context
from llama4_pipeline.metrics.evaluate import QualityResult, evaluate, text_documents
from llama4_pipeline.metrics.expert_changes import ReferenceRouting
from llama4_pipeline.metrics.latency import measure_decoder
from llama4_pipeline.preflight import graph_bytes
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline.runtime.remembered import RememberedDecoder

FLOAT = ("fp32", "float32")
"""Precision and method of the graph that the others are made from."""
_PROMPT_TOKENS, _NEW_TOKENS, _REPEATS = 16, 32, 5
_logger = logging.getLogger(__name__)


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


def compare_methods(
    graph: Path,
    checkpoint: Path,
    data: Mapping[str, Path],
    pairs: Iterable[tuple[str, str]],
    quantize: Callable[[str, str, Path], object],
    scratch: Path,
) -> list[MethodResult]:
    """Judges a fused float graph and its quantized forms on the same text and tasks.

    Args:
        graph: directory of the float graph; it is the first row.
        checkpoint: what it was made from.
        data: sources by name, as in `evaluate`.
        pairs: (precision, method) of the rows behind it.
        quantize: writes the graph of (precision, method) into an empty directory.
        scratch: where a quantized graph stands while it is judged, and what PyTorch said of the text.
    """
    tokenizer, stop_tokens = load_tokenizer(checkpoint), read_stop_tokens(checkpoint)
    max_context = exported_context(load_graph(graph).metadata_props)
    routing = ReferenceRouting(checkpoint, text_documents(tokenizer, data), max_context)
    reference = RememberedDecoder(open_decoder("pytorch", checkpoint=checkpoint), scratch)

    def judge(precision: str, method: str, directory: Path) -> MethodResult:
        decoder = open_decoder("onnxruntime", graph=directory)
        before = _decode_latency_ms(decoder)
        quality = evaluate(decoder, tokenizer, data, reference, stop_tokens=stop_tokens)
        latency = min(before, _decode_latency_ms(decoder))  # what else the machine does only adds
        decoder.close()
        share = routing.change_share(directory)
        result = MethodResult(
            precision=precision,
            method=method,
            model_bytes=graph_bytes(directory),
            weight_bytes=initializer_bytes(load_graph(directory).graph),
            decode_latency_ms=latency,
            quality=quality.model_copy(update={"expert_change_share": share}),
        )
        _logger.info(
            "%s: perplexity %+.3f%%, %.3g ms/token",
            result.name, 100 * result.loss, result.decode_latency_ms,
        )  # fmt: skip
        return result

    results = [judge(*FLOAT, graph)]
    for precision, method in pairs:
        out = scratch / f"{precision}-{method}"
        out.mkdir(parents=True)
        quantize(precision, method, out)
        results.append(judge(precision, method, out))
        shutil.rmtree(out)
    reference.close()
    return results


def write_results(results: Iterable[MethodResult], file: Path) -> None:
    """Writes rows as JSON that `read_results` reads."""
    file.write_text(json.dumps([result.model_dump(mode="json") for result in results], indent=1))


def read_results(file: Path) -> list[MethodResult]:
    """Reads what `write_results` wrote."""
    return [MethodResult.model_validate(row) for row in json.loads(file.read_bytes())]


def _decode_latency_ms(decoder: Decoder) -> float:
    measured = measure_decoder(
        decoder, prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, repeats=_REPEATS
    )
    return measured.decode_latency_ms.p50
