"""The cache in 8 bits: close to the float one, a quarter of its size, refused where it cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize.cache import quantize_cache
from llama4_pipeline.graph.quantize.calibration import Calibration, graph_inputs
from llama4_pipeline.graph.validate import validate_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

VOCAB = 131
CALIBRATION = Calibration(tuple(np.random.default_rng(seed).integers(0, VOCAB, 40) for seed in range(100)))


@pytest.fixture(scope="module")
def fused_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of 64 tokens, in which three of four layers attend in chunks of 16; no router that could choose anew."""
    out = tmp_path_factory.mktemp("fused")
    checkpoint = Checkpoint.open(write_random_checkpoint(out / "checkpoint", num_local_experts=1))
    export_in_one_stream(checkpoint, out, form="fused", precision="fp32", max_context=64)
    return out


def test_decode_is_close_on_a_quarter_of_the_memory(fused_graph: Path, tmp_path: Path):
    report = quantize_cache(fused_graph, tmp_path, CALIBRATION)
    assert report.layers == 4
    assert report.bytes_per_token_before == 4 * report.bytes_per_token_after == 4 * 2 * 4 * 2 * 16
    decoders = [OrtDecoder(graph, threads=1) for graph in (fused_graph, tmp_path)]
    ids = np.random.default_rng(7).integers(0, VOCAB, (2, 40))
    for begin, end in ((0, 9), *((n, n + 1) for n in range(9, 40))):
        expected, actual = (decoder.forward(ids[:, begin:end]) for decoder in decoders)
        difference = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert 0 < difference < 0.05
    assert decoders[0].cache_bytes() == 4 * decoders[1].cache_bytes()


def test_it_is_validated_as_a_quantised_graph(fused_graph: Path, tmp_path: Path):
    quantize_cache(fused_graph, tmp_path, CALIBRATION)
    checkpoint = Checkpoint.open(fused_graph / "checkpoint")
    report = validate_graph(checkpoint, tmp_path, lengths=[9, 40], batches=[1, 2], greedy_tokens=0)
    assert report.precision == "int8"
    assert report.passed


def test_both_channels_of_a_rotated_pair_hold_its_length(fused_graph: Path, tmp_path: Path):
    """At positions beyond all calibration either channel comes to hold what both had at its start."""
    quantize_cache(fused_graph, tmp_path, CALIBRATION)
    graph = load_graph(tmp_path).graph
    pairs = {
        (layer, part): graph.initializers[f"present.{layer}.{part}.scale"].const_value.numpy().reshape(-1, 2)
        for layer in range(4)
        for part in ("key", "value")
    }
    alike = {name for name, scales in pairs.items() if (scales[:, 0] == scales[:, 1]).all()}
    assert alike == {(0, "key"), (1, "key"), (2, "key")}, "layer 3 does not rotate"
    keys = _float_keys(fused_graph)
    lengths = np.hypot(keys[0, :, :, 0::2], keys[0, :, :, 1::2]).max(axis=1).reshape(-1)
    np.testing.assert_allclose(127 * pairs[0, "key"][:, 0], lengths, rtol=1e-5)


def test_another_configuration_is_refused(fused_graph: Path, tmp_path: Path):
    """Which layers rotate stands there alone."""
    graph = Path(shutil.copytree(fused_graph, tmp_path / "graph"))
    config = json.loads((graph / "config.json").read_text())
    more = {"num_hidden_layers": 5, "no_rope_layers": [1] * 5, "layer_types": None}
    (graph / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(
        InputError, match=r"graph has no present\.4\.key: its config\.json is another model's"
    ):
        quantize_cache(graph, tmp_path / "out", CALIBRATION)


def _float_keys(graph: Path) -> np.ndarray:
    """Of layer 0 for all of the calibration, float32 [1, K, T, D]; its chunks of 16 begin anew, so in such pieces."""
    session = onnxruntime.InferenceSession(str(graph / "model.onnx"), providers=["CPUExecutionProvider"])
    model = load_graph(graph)
    pieces = CALIBRATION.cut_for(model).sequences
    found = [session.run(["present.0.key"], graph_inputs(model.graph, piece))[0] for piece in pieces]
    return np.concatenate(found, axis=2)


def test_it_stands_alone(fused_graph: Path, tmp_path: Path):
    """With a file of weights in common, the checker refuses both graphs."""
    quantize_cache(fused_graph, tmp_path, CALIBRATION)
    assert (tmp_path / "model.onnx.data").stat().st_nlink == 1
    onnx.checker.check_model(tmp_path / "model.onnx")


def test_other_graphs_are_refused(portable_graph: Path, fused_graph: Path, tmp_path: Path):
    with pytest.raises(InputError, match="has no GroupQueryAttention"):
        quantize_cache(portable_graph, tmp_path / "out", CALIBRATION)
    once = tmp_path / "once"
    with pytest.raises(InputError, match=r"10 tokens of calibration: .* want 128"):
        quantize_cache(fused_graph, once, Calibration((np.arange(10),)))
    quantize_cache(fused_graph, once, CALIBRATION)
    assert (
        onnx.load(once / "model.onnx", load_external_data=False).graph.input[3].type.tensor_type.elem_type
        == 3
    )
    with pytest.raises(InputError, match="its cache has been quantized; give the graph from before"):
        quantize_cache(once, tmp_path / "twice", CALIBRATION)
    convert_to_float16(fused_graph, tmp_path / "half")
    with pytest.raises(InputError, match="half computes in float16: give a graph with a float32 cache"):
        quantize_cache(tmp_path / "half", tmp_path / "twice", CALIBRATION)
