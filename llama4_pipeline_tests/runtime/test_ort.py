"""ONNX Runtime against transformers: every way to feed tokens, both forms of the graph."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime import kv_cache, ort
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

VOCAB = 131
CHUNK = 16  # of three layers; one sees the whole context
TOLERANCE = 5e-5
ATTENTION_KERNEL = "ORT_GQA_DISABLE_FLASH_ATTENTION"
ONE = None  # a mask of ones


def padded(*columns: str) -> np.ndarray:
    """A mask from rows of text: '.' is padding, 'x' a token."""
    return np.array([[int(mark == "x") for mark in row] for row in columns])


LEFT = padded("xxxxxxxxxxxxxxxxxxxx", ".....xxxxxxxxxxxxxxx", ".................xxx")
RIGHT = LEFT[:, ::-1]
HOLES = padded("xxx...xxxxxxxxxxxxxx", "xxxxxxxxxxxxxxxxxxxx", "..xx.xx.xxxxxxxxx...")
SECOND = padded(".....xxxx", "xxxxx....", "xx...xxxx")

TURNS = {
    "prefill across chunks": [(1, 40, ONE)],
    "a batch": [(3, 40, ONE)],
    "a prompt in parts": [(2, 550, ONE), (2, 1, ONE)],
    "decode": [(1, 14, ONE)] + [(1, 1, ONE)] * 6,
    "decode of a batch": [(3, 14, ONE)] + [(3, 1, ONE)] * 6,
    "left padding": [(3, 20, LEFT)] + [(3, 1, ONE)] * 6,
    "right padding": [(3, 20, RIGHT)] + [(3, 1, ONE)] * 3,
    "holes": [(3, 20, HOLES), (3, 1, ONE), (3, 3, ONE)],
    "second turn": [(1, 20, ONE), (1, 20, ONE), (1, 1, ONE), (1, 7, ONE)],
    "second turn with padding": [
        (1, 20, ONE),
        (1, 9, SECOND[:1]),
        (1, 9, SECOND[1:2]),
        (1, 9, SECOND[2:]),
        (1, 1, ONE),
    ],
    "second turn of a batch": [(2, 20, ONE), (2, 20, ONE), (2, 1, ONE)],
    "second turn of a padded batch": [(3, 20, LEFT), (3, 9, SECOND), (3, 1, ONE), (3, 1, ONE)],
    "rows that pause": [
        (3, 20, LEFT),
        (3, 1, padded("x", ".", "x")),
        (3, 1, padded("x", "x", ".")),
        (3, 1, ONE),
    ],
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS.keys())
def test_logits_are_those_of_transformers(graph_decoder, reference, turns):
    random = np.random.default_rng(0)
    for batch, new, new_mask in turns:
        ids = random.integers(0, VOCAB, (batch, new))
        new_mask = np.ones_like(ids) if new_mask is None else new_mask
        mask = np.concatenate([reference.mask.reshape(batch, -1), new_mask], axis=1)
        ours, theirs = graph_decoder.forward(ids, mask), reference.forward(ids, mask)
        assert ours.shape == theirs.shape == (batch, new, VOCAB)
        assert ours.dtype == np.float32
        real = new_mask == 1
        np.testing.assert_allclose(ours[real], theirs[real], atol=TOLERANCE)


@pytest.mark.parametrize("kept", [1, 3, 100])
def test_logits_to_keep_are_the_last_ones(graph_decoder, kept):
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, 20))
    second = np.concatenate([LEFT, SECOND], axis=1)
    for new, mask in ((ids, LEFT), (ids[:, :9], second)):
        before = graph_decoder.mask
        everything = graph_decoder.forward(new, mask)
        graph_decoder.reset()
        if before.size:
            graph_decoder.forward(ids, LEFT)
        last = graph_decoder.forward(new, mask, logits_to_keep=kept)
        expected = everything[:, -kept:]
        assert last.shape == expected.shape
        real = mask[:, -new.shape[1] :][:, -kept:] == 1
        np.testing.assert_allclose(last[real], expected[real], atol=TOLERANCE)


def test_buffers_grow_when_they_are_full(fused_graph, reference):
    decoder = OrtDecoder(fused_graph, threads=1)
    ids = np.random.default_rng(2).integers(0, VOCAB, (2, 520))
    sizes = set()
    for begin, end in [(0, 250), (250, 251), (251, 260), (260, 513), (513, 520)]:
        ours, theirs = (each.forward(ids[:, begin:end]) for each in (decoder, reference))
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        sizes.add(decoder.cache_bytes())
    bytes_per_token = 2 * 2 * 16 * 4 * 2  # rows, KV heads, head size, float32, key and value
    assert sizes == {bytes_per_token * (3 * CHUNK + capacity) for capacity in (256, 512, 600)}


def test_a_long_cache_shortens_the_parts_of_a_prompt(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", attention_chunk_size=600))
    export_in_one_stream(checkpoint, tmp_path / "graph", form="fused", precision="fp32", max_context=600)
    ids = np.random.default_rng(3).integers(0, VOCAB, (1, 290))
    whole = OrtDecoder(tmp_path / "graph", threads=1).forward(ids)
    monkeypatch.setattr(ort, "_MOST_SCORES", 64 * 256)
    decoder, widths = OrtDecoder(tmp_path / "graph", threads=1), []
    run = decoder._run
    monkeypatch.setattr(decoder, "_run", lambda ids, *rest: widths.append(ids.shape[1]) or run(ids, *rest))

    logits = [decoder.forward(ids[:, begin:end]) for begin, end in ((0, 130), (130, 140), (140, 290))]

    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=TOLERANCE)
    assert widths == [64, 64, 2, 10, 32, 32, 32, 32, 22]  # the third call has 512 slots in place of 256


@pytest.mark.parametrize(("chosen", "found"), [({}, "1"), ({ATTENTION_KERNEL: "0"}, "0")])
def test_the_plain_attention_kernel_is_asked_for_unless_the_caller_chose(chosen, found):
    others = {name: value for name, value in os.environ.items() if name != ATTENTION_KERNEL}
    words = f"import llama4_pipeline, os; print(os.environ[{ATTENTION_KERNEL!r}])"
    answer = subprocess.run(
        [sys.executable, "-c", words], env=others | chosen, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == found


def test_a_step_moves_nothing_in_a_shared_cache(fused_graph):
    decoder = OrtDecoder(fused_graph, threads=1)
    decoder.forward(np.ones((2, 5), dtype=np.int64))
    shared = decoder._cache
    assert isinstance(shared, kv_cache.SharedBuffers)
    addresses = [buffer.data_ptr() for buffer in shared._buffers]
    for _ in range(5):
        decoder.forward(np.ones((2, 1), dtype=np.int64))
    assert [buffer.data_ptr() for buffer in shared._buffers] == addresses


def test_another_batch_begins_with_small_buffers(fused_graph):
    decoder = OrtDecoder(fused_graph, threads=1)
    sizes = []
    for batch, tokens in ((1, 10), (1, 300), (2, 10)):
        decoder.reset()
        decoder.forward(np.ones((batch, tokens), dtype=np.int64), logits_to_keep=1)
        sizes.append(decoder.cache_bytes())
    assert sizes[0] < sizes[1] and sizes[2] == 2 * sizes[0]


def test_a_step_binds_nothing_anew_where_all_layers_are_chunked(tmp_path):
    checkpoint = write_random_checkpoint(
        tmp_path / "checkpoint", attention_chunk_size=7, layer_types=["chunked_attention"] * 4
    )
    export_in_one_stream(
        Checkpoint.open(checkpoint), tmp_path / "graph", form="fused", precision="fp32", max_context=64
    )
    decoder = OrtDecoder(tmp_path / "graph", threads=1)
    decoder.forward(np.ones((1, 20), dtype=np.int64))
    shared = decoder._cache
    assert isinstance(shared, kv_cache.SharedBuffers)
    bound = shared._bound
    for _ in range(20):
        decoder.forward(np.ones((1, 1), dtype=np.int64))
    assert shared._bound is bound


def test_logits_stay_what_they_were(graph_decoder):
    first = graph_decoder.forward(np.ones((1, 3), dtype=np.int64), logits_to_keep=1)
    kept = first.copy()
    graph_decoder.forward(np.full((1, 3), 2), logits_to_keep=1)
    np.testing.assert_array_equal(first, kept)


def test_another_batch_after_reset(graph_decoder, reference):
    random = np.random.default_rng(3)
    for batch in (1, 3, 2):
        ids = random.integers(0, VOCAB, (batch, 6))
        graph_decoder.reset()
        reference.reset()
        np.testing.assert_allclose(graph_decoder.forward(ids), reference.forward(ids), atol=TOLERANCE)


def test_context_beyond_the_export_is_refused(graph_decoder):
    assert graph_decoder.max_context == 600
    graph_decoder.forward(np.ones((1, 600), dtype=np.int64), logits_to_keep=1)
    with pytest.raises(InputError, match=r"601 tokens do not fit.*exported for 600"):
        graph_decoder.forward(np.ones((1, 1), dtype=np.int64))


def test_a_refused_call_leaves_the_cache_as_it_was(graph_decoder, reference):
    ids = np.random.default_rng(4).integers(0, VOCAB, (1, 8))
    graph_decoder.forward(ids)
    with pytest.raises(InputError):
        graph_decoder.forward(np.array([[VOCAB]]))
    reference.forward(ids)
    np.testing.assert_allclose(graph_decoder.forward(ids), reference.forward(ids), atol=TOLERANCE)


def test_providers_count_the_nodes_that_run(graph_decoder):
    providers = graph_decoder.providers()
    assert list(providers) == ["CPUExecutionProvider"]
    assert providers["CPUExecutionProvider"] > 50


def test_a_graph_without_limit_and_without_logits_to_keep(portable_graph, reference, tmp_path):
    shutil.copytree(portable_graph, tmp_path / "graph")
    path = tmp_path / "graph" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "logits_to_keep"))
    onnx.save(model, path)
    decoder = OrtDecoder(tmp_path / "graph", threads=1)
    assert decoder.max_context > 10**9
    ids = np.random.default_rng(5).integers(0, VOCAB, (2, 9))
    np.testing.assert_allclose(
        decoder.forward(ids, logits_to_keep=2), reference.forward(ids, logits_to_keep=2), atol=TOLERANCE
    )


def test_chunks_of_unknown_size_are_refused(fused_graph, tmp_path):
    shutil.copytree(fused_graph, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="holds a chunk of unknown size; export it again"):
        OrtDecoder(tmp_path, threads=1)


@pytest.mark.parametrize("key", ["llama4.max_context", "llama4.chunk_size"])
@pytest.mark.parametrize("value", ["", "1.5", "-1", "0", "9" * 30])
def test_a_length_that_is_none_is_refused(fused_graph, tmp_path, key, value):
    shutil.copytree(fused_graph, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    onnx.helper.set_model_props(model, {each.key: each.value for each in model.metadata_props} | {key: value})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=rf"{key} of the graph is '{value}', expected a number of tokens"):
        OrtDecoder(tmp_path, threads=1)


def test_an_input_that_nothing_feeds_is_refused(fused_graph, tmp_path):
    shutil.copytree(fused_graph, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="nothing feeds its input pixel_values; the inputs of a decoder are"):
        OrtDecoder(tmp_path, threads=1)


def test_a_cache_that_does_not_come_out_is_refused(portable_graph, tmp_path):
    shutil.copytree(portable_graph, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    model.graph.output.remove(next(value for value in model.graph.output if value.name == "present.1.key"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"it has no output present\.1\.key; export it again"):
        OrtDecoder(tmp_path, threads=1)


def test_a_directory_without_graph_is_named(tmp_path):
    with pytest.raises(InputError, match=r"model\.onnx does not exist"):
        OrtDecoder(tmp_path)


@pytest.mark.parametrize("broken", ["model.onnx", "model.onnx.data"])
def test_a_broken_graph_is_one_line(fused_graph, tmp_path, broken):
    shutil.copytree(fused_graph, tmp_path / "graph")
    for path in (tmp_path / "graph").glob(f"{broken}*" if broken.endswith("data") else broken):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model\.onnx does not load \(.*\); export it again") as caught:
        OrtDecoder(tmp_path / "graph")
    assert "\n" not in str(caught.value)


def test_cuda_without_cuda_is_named(fused_graph):
    with pytest.raises(InputError, match=r"CUDAExecutionProvider.*\[gpu\]"):
        OrtDecoder(fused_graph, device="cuda")


def test_a_cache_that_found_no_memory_is_empty(fused_graph, reference, monkeypatch):
    decoder = OrtDecoder(fused_graph, threads=1)
    decoder.forward(np.ones((1, 200), dtype=np.int64))

    def none_left(*_):
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "_zeros", none_left)
        with pytest.raises(InputError, match="no memory for a KV cache"):
            decoder.forward(np.ones((1, 100), dtype=np.int64))
    ids = np.arange(1, 6)[None]
    assert np.abs(decoder.forward(ids) - reference.forward(ids)).max() < TOLERANCE


def test_a_device_without_memory_for_a_cache_is_named(fused_graph, monkeypatch):
    decoder = OrtDecoder(fused_graph, threads=1)

    def none_left(*_):
        raise ort_state.RuntimeException("Failed to allocate memory for requested buffer")

    monkeypatch.setattr(kv_cache.ort.OrtValue, "ortvalue_from_numpy", none_left)
    with pytest.raises(InputError, match="no memory for a KV cache"):
        decoder.forward(np.ones((1, 100), dtype=np.int64))
    assert decoder.cache_bytes() == 0


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (ort_state.RuntimeException("Failed to allocate memory"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_prompt_that_is_not_read_to_its_end_leaves_nothing(
    graph_decoder, reference, monkeypatch, ended, told
):
    """What was read of it may stand where a chunked layer held the chunk before."""
    ids = np.random.default_rng(6).integers(0, VOCAB, (1, 3 * CHUNK))
    graph_decoder.forward(ids[:, :11])
    run, parts = graph_decoder._run, []

    def run_two_parts(*arguments):
        logits = run(*arguments)
        parts.append(logits)
        if not graph_decoder._fused or len(parts) == 2:
            raise ended
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(graph_decoder, "_run", run_two_parts)
        with pytest.raises(told):
            graph_decoder.forward(ids[:, 11:])
    assert graph_decoder.mask.size == 0
    np.testing.assert_allclose(graph_decoder.forward(ids), reference.forward(ids), atol=TOLERANCE)


def test_a_prompt_that_no_memory_holds_is_refused(tmp_path):
    """A portable graph holds the scores of all tokens at once."""
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint"))
    graph = tmp_path / "graph"
    export_in_one_stream(checkpoint, graph, form="portable", precision="fp32", max_context=10_000)
    program = f"""
import resource
import numpy as np, psutil
from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.ort import OrtDecoder
decoder = OrtDecoder(__import__("pathlib").Path({str(graph)!r}), threads=1)
decoder.forward(np.ones((1, 5), dtype=np.int64))
room = psutil.Process().memory_info().vms + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    decoder.forward(np.ones((1, 9000), dtype=np.int64))
except InputError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "no memory for a run of 1 rows of 9,000 tokens" in told.stdout, told.stderr[-2000:]
