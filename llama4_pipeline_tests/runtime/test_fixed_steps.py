"""Steps of one shape in one memory, on the CPU, where nothing is captured: the numbers of steps that grow."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.runtime.conftest import MAX_CONTEXT
from llama4_pipeline_tests.runtime.test_ort import LEFT, ONE, TURNS, VOCAB

TURNS_TO_THE_END = {
    **TURNS,
    "the cache grows": [(2, 254, ONE), *[(2, 1, ONE)] * 6],
    "the context is full": [(1, MAX_CONTEXT - 3, ONE), *[(1, 1, ONE)] * 3],
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks of 16, and a temperature that never leaves its first step."""
    directory = tmp_path_factory.mktemp("fixed")
    checkpoint = write_random_checkpoint(directory / "checkpoint", floor_scale=MAX_CONTEXT + 1)
    export_in_one_stream(
        Checkpoint.open(checkpoint),
        directory / "graph",
        form="fused",
        precision="fp32",
        max_context=MAX_CONTEXT,
    )
    return directory / "graph"


@pytest.fixture(scope="module")
def decoders(graph: Path) -> tuple[OrtDecoder, OrtDecoder]:
    return OrtDecoder(graph, threads=1), OrtDecoder(graph, threads=1, fixed_steps=True)


@pytest.mark.parametrize("turns", TURNS_TO_THE_END.values(), ids=TURNS_TO_THE_END.keys())
def test_logits_are_those_of_steps_that_grow(decoders: tuple[OrtDecoder, OrtDecoder], turns: list) -> None:
    random, mask = np.random.default_rng(0), np.zeros((turns[0][0], 0), np.int64)
    for decoder in decoders:
        decoder.reset()
    for batch, new, new_mask in turns:
        ids = random.integers(0, VOCAB, (batch, new))
        new_mask = np.ones_like(ids) if new_mask is None else new_mask
        mask = np.concatenate([mask, new_mask], axis=1)
        grown, fixed = (decoder.forward(ids, mask) for decoder in decoders)
        np.testing.assert_allclose(fixed[new_mask == 1], grown[new_mask == 1], atol=1e-6)


def test_a_longer_text_leaves_nothing_behind(graph: Path) -> None:
    used, fresh = (OrtDecoder(graph, threads=1, fixed_steps=True) for _ in range(2))
    used.forward(np.full((1, 30), 7))
    used.forward(np.array([[8]]))
    used.reset()
    steps = []
    for decoder in (used, fresh):
        decoder.forward(np.full((1, 12), 5))
        steps.append(decoder.forward(np.array([[9]])))
    np.testing.assert_allclose(*steps, atol=1e-6)


def test_another_batch_leaves_nothing_behind(graph: Path) -> None:
    decoder, logits = OrtDecoder(graph, threads=1, fixed_steps=True), []
    for rows in (3, 1, 3):
        decoder.reset()
        decoder.forward(np.full((rows, 20), 7), LEFT[:rows])
        logits.append(decoder.forward(np.full((rows, 1), 9)))
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-6)
    np.testing.assert_allclose(logits[0][:1], logits[1], atol=1e-6)


def test_the_caller_keeps_the_logits_of_a_step(graph: Path) -> None:
    decoder = OrtDecoder(graph, threads=1, fixed_steps=True)
    first = decoder.forward(np.array([[3]]))
    kept = first.copy()
    decoder.forward(np.array([[4]]))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("form", ["fused", "portable"])
def test_a_graph_that_counts_slots_or_grows_its_cache_is_refused(
    form: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(InputError, match=r"cannot be fixed for a CUDA graph.*floor_scale"):
        OrtDecoder(request.getfixturevalue(f"{form}_graph"), fixed_steps=True)
