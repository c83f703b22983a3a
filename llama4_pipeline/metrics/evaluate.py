"""All that is known of an engine's quality, in one record: what `eval` prints and the table shows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama4_pipeline.data.samples import (
    ClassifySample,
    Sample,
    SummariseSample,
    TextSample,
    form_of,
    read_samples,
)
from llama4_pipeline.metrics.divergence import measure_divergence
from llama4_pipeline.metrics.perplexity import count_targets, measure_perplexity
from llama4_pipeline.metrics.quality import QualityResult
from llama4_pipeline.metrics.tasks import classification_accuracy, require_room, summary_rouge
from llama4_pipeline.runtime.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate_graph(
    graph: Path,
    data: str | Path | Mapping[str, str | Path],
    checkpoint: str | Path | None = None,
    *,
    threads: int = 0,
    device: str = "cpu",
) -> QualityResult:
    """Measures everything that the data allows of a graph in ONNX Runtime, PyTorch float32 beside it.

    Args:
        graph: directory with model and tokenizer.
        data: as in `evaluate`.
        checkpoint: what the graph was made from; without it there is no divergence and no change of experts.
        threads, device: as in `open_decoder`.

    Raises:
        InputError, CheckFailed: as in `evaluate`.
    """
    from llama4_pipeline.llama4.tokenizer import load_tokenizer, read_stop_tokens
    from llama4_pipeline.metrics.expert_changes import ReferenceRouting
    from llama4_pipeline.runtime.engines import open_decoder

    tokenizer, stop_tokens = load_tokenizer(graph), read_stop_tokens(graph)
    judged = open_decoder("onnxruntime", graph=graph, threads=threads, device=device)
    if checkpoint is None:
        return evaluate(judged, tokenizer, data, stop_tokens=stop_tokens)
    original = open_decoder("pytorch", checkpoint=checkpoint, threads=threads, device=device)
    quality = evaluate(judged, tokenizer, data, original, stop_tokens=stop_tokens)
    judged.close()
    original.close()
    documents = text_documents(tokenizer, data)
    if not count_targets(documents):
        return quality
    share = ReferenceRouting(checkpoint, documents, judged.max_context).change_share(graph, device)
    return quality.model_copy(update={"expert_change_share": share})


def evaluate(
    decoder: Decoder,
    tokenizer: "PreTrainedTokenizerBase",
    data: str | Path | Mapping[str, str | Path],
    reference: Decoder | None = None,
    *,
    context: int | None = None,
    stride: int | None = None,
    stop_tokens: Sequence[int] = (),
) -> QualityResult:
    """Measures everything that the data allows.

    Args:
        decoder: the engine that is judged.
        tokenizer: of the model, used as it is: special tokens it begins a text with are part of the text.
        data: one source or several by name, each what `read_samples` takes; kinds of rows may be mixed. A plain
            text file is one document.
        reference: the engine to compare with; without it there is no divergence.
        context, stride: of the perplexity's windows, as in `measure_perplexity`.
        stop_tokens: what ends an answer beside the tokenizer's end-of-text token.

    Raises:
        InputError: bad data, named by line; a text or a prompt that does not fit the decoder.
        CheckFailed: logits hold NaN or infinity.
    """
    samples = _all_samples(data)
    require_room(tokenizer, samples, decoder.max_context)
    documents = _documents(tokenizer, samples)
    summaries = [each for each in samples if isinstance(each, SummariseSample)]
    classifications = [each for each in samples if isinstance(each, ClassifySample)]
    figures: dict[str, float] = {}
    if count_targets(documents) or not (summaries or classifications):
        figures |= _text_figures(decoder, reference, documents, context, stride)
    if summaries:
        figures["summaries"] = len(summaries)
        for name, score in summary_rouge(decoder, tokenizer, summaries, stop_tokens=stop_tokens).items():
            figures |= {name: score.mean, f"{name}_stderr": score.stderr}
    if classifications:
        accuracy = classification_accuracy(decoder, tokenizer, classifications, stop_tokens=stop_tokens)
        figures |= {
            "classifications": accuracy.samples,
            "accuracy": accuracy.mean,
            "accuracy_stderr": accuracy.stderr,
        }
    unknown = {name for name, value in figures.items() if name.endswith("stderr") and math.isnan(value)}
    return QualityResult.model_validate({name: figures[name] for name in figures.keys() - unknown})


def text_documents(
    tokenizer: "PreTrainedTokenizerBase", data: str | Path | Mapping[str, str | Path]
) -> list[np.ndarray]:
    """The running text of the data, int64 [tokens] for each document."""
    return _documents(tokenizer, _all_samples(data))


def _text_figures(
    decoder: Decoder,
    reference: Decoder | None,
    documents: Sequence[np.ndarray],
    context: int | None,
    stride: int | None,
) -> dict[str, float]:
    if reference is None:
        alone = measure_perplexity(decoder, documents, context=context, stride=stride)
        return {"tokens": alone.tokens, "perplexity": alone.value, "perplexity_stderr": alone.stderr}
    compared = measure_divergence(decoder, reference, documents, context=context, stride=stride)
    return {
        "tokens": compared.tokens,
        "perplexity": compared.perplexity.value,
        "perplexity_stderr": compared.perplexity.stderr,
        "reference_perplexity": compared.reference_perplexity.value,
        "perplexity_ratio": compared.perplexity_ratio,
        "perplexity_ratio_stderr": compared.perplexity_ratio_stderr,
        "kl_divergence": compared.mean,
        "kl_stderr": compared.stderr,
        "kl_p99": compared.p99,
        "kl_max": compared.maximum,
        "top1_agreement": compared.top1_agreement,
        "top1_stderr": compared.top1_stderr,
    }


def _all_samples(data: str | Path | Mapping[str, str | Path]) -> list[Sample]:
    sources = data.values() if isinstance(data, Mapping) else [data]
    return [sample for source in sources for sample in _samples(source)]


def _samples(source: str | Path) -> list[Sample]:
    """The samples of a source; plain text is kept whole, so that every token but the first has its context."""
    samples = read_samples(source)
    path = Path(source)
    if path.is_file() and form_of(path) == "text":
        return [TextSample(path.read_text(encoding="utf-8-sig"))]
    return samples


def _documents(tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample]) -> list[np.ndarray]:
    texts = [sample.text for sample in samples if isinstance(sample, TextSample)]
    return [np.asarray(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64) for text in texts]
