"""Quality of every quantized row in one process: `python -m llama4_pipeline_tests.benchmark.quality REQUEST`."""

import logging
import sys
from pathlib import Path

import numpy as np
from pydantic import BaseModel, TypeAdapter

from llama4_pipeline.metrics.divergence import measure_divergence
from llama4_pipeline.runtime.decoder import UNLIMITED
from llama4_pipeline.runtime.engines import find_engine, open_decoder
from llama4_pipeline_tests.benchmark.record import Quality

TOKENS = 256


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
    reference = Remembered(open_decoder("pytorch", checkpoint=request.checkpoint, **common))
    tokens = np.random.default_rng(0).integers(0, reference.vocab_size, TOKENS)
    results = {}
    for key, (engine, path) in request.judged.items():
        graph = find_engine(engine).runs == "graph"
        decoder = open_decoder(
            engine, graph=path if graph else None, checkpoint=None if graph else path, **common
        )
        found = measure_divergence(decoder, reference, [tokens], context=TOKENS)
        results[key] = Quality(
            tokens=found.tokens,
            kl_divergence=found.mean,
            kl_stderr=found.stderr,
            top1_agreement=found.top1_agreement,
        )
        decoder.close()
    return results


class Remembered:
    """A decoder that computes one window once, since every engine is held against the same."""

    def __init__(self, decoder) -> None:
        self.engine, self.vocab_size = decoder.engine, decoder.vocab_size
        self.max_context = min(decoder.max_context, UNLIMITED)
        self._decoder, self._logits = decoder, None

    def reset(self) -> None:
        """Nothing is kept but the answer."""

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0):
        if self._logits is None:
            self._decoder.reset()
            self._logits = self._decoder.forward(input_ids, attention_mask, logits_to_keep)
        return self._logits


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    results = judge(QualityRequest.model_validate_json(sys.argv[1]))
    print(RESULTS.dump_json(results).decode())
