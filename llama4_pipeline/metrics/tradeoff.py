"""What methods of quantization lose, what they weigh and how fast they are: each graph is judged and thrown away."""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from llama4_pipeline.graph.external_data import initializer_bytes, load_graph
from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
from llama4_pipeline.metadata import exported_context
from llama4_pipeline.metrics.evaluate import evaluate, text_documents
from llama4_pipeline.metrics.expert_changes import ReferenceRouting
from llama4_pipeline.metrics.latency import measure_decoder
from llama4_pipeline.metrics.method_result import FLOAT, MethodResult
from llama4_pipeline.preflight import graph_bytes
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.engines import open_decoder
from llama4_pipeline.runtime.remembered import RememberedDecoder

_PROMPT_TOKENS, _NEW_TOKENS, _REPEATS = 16, 32, 5
_logger = logging.getLogger(__name__)


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


def _decode_latency_ms(decoder: Decoder) -> float:
    measured = measure_decoder(
        decoder, prompt_tokens=_PROMPT_TOKENS, new_tokens=_NEW_TOKENS, repeats=_REPEATS
    )
    return measured.decode_latency_ms.p50
