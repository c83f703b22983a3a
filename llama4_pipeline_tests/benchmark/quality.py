"""Quality of every quantized row in one process: `python -m llama4_pipeline_tests.benchmark.quality REQUEST`."""

import logging
import sys
from pathlib import Path

import numpy as np
from pydantic import BaseModel, TypeAdapter

from llama4_pipeline.metrics.divergence import measure_divergence
from llama4_pipeline.runtime.engines import find_engine, open_decoder
from llama4_pipeline.runtime.remembered import RememberedDecoder
from llama4_pipeline_tests.benchmark.record import Quality

SEQUENCES = 4  # a mixture's divergence is that of the few tokens that change their expert
TOKENS = 1024  # of each


class QualityRequest(BaseModel):
    """The checkpoint, and what the engines of the rows open."""

    checkpoint: Path
    judged: dict[str, tuple[str, Path]]
    """Key of a row -> its engine and what that opens."""
    threads: int
    device: str


RESULTS = TypeAdapter(dict[str, Quality])


def judge(request: QualityRequest) -> dict[str, Quality]:
    """Compares each engine with PyTorch in float32 on the same tokens, drawn from the vocabulary."""
    common = {"threads": request.threads, "device": request.device}
    reference = RememberedDecoder(open_decoder("pytorch", checkpoint=request.checkpoint, **common))
    text = list(np.random.default_rng(0).integers(0, reference.vocab_size, (SEQUENCES, TOKENS)))
    results = {}
    for key, (engine, path) in request.judged.items():
        graph = find_engine(engine).runs == "graph"
        decoder = open_decoder(
            engine, graph=path if graph else None, checkpoint=None if graph else path, **common
        )
        found = measure_divergence(decoder, reference, text, context=TOKENS)
        results[key] = Quality(
            tokens=found.tokens,
            kl_divergence=found.mean,
            kl_stderr=found.stderr,
            top1_agreement=found.top1_agreement,
        )
        decoder.close()
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    results = judge(QualityRequest.model_validate_json(sys.argv[1]))
    print(RESULTS.dump_json(results).decode())
