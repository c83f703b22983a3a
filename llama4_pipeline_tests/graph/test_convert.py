"""Conversion to float16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.cache import quantize_cache
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.qdq import quantize_with_ort
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.quantize.toy_graph import Toy


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused graph without experts: the CPU runs it in float16."""
    directory = tmp_path_factory.mktemp("dense")
    checkpoint = Checkpoint.open(write_random_checkpoint(directory / "checkpoint", moe_layers=[]))
    export_graph(checkpoint, directory / "portable", max_context=64)
    fuse_graph(directory / "portable", directory / "fused")
    return directory / "fused"


def test_float16_graph_computes_the_same(dense: Path, tmp_path: Path) -> None:
    report = convert_to_float16(dense, tmp_path / "half")
    expected, result = _run(dense), _run(tmp_path / "half")
    assert result[0].dtype == np.float32
    assert {output.dtype for output in result[1:]} == {np.dtype(np.float16)}
    assert np.linalg.norm(result[0] - expected[0]) < 5e-3 * np.linalg.norm(expected[0])
    assert report.bytes_after < 0.51 * report.bytes_before
    assert report.no_cpu_kernel == ()
    assert (tmp_path / "half" / "config.json").is_file()


def test_the_temperature_of_each_slot_is_rounded_once(dense: Path, tmp_path: Path) -> None:
    """Float16 counts positions exactly to 2048 only, so their temperature is a table."""
    convert_to_float16(dense, tmp_path / "half")
    full, half = (
        load_graph(graph).graph.initializers["attention.temperature"].const_value.numpy()
        for graph in (dense, tmp_path / "half")
    )
    assert len(np.unique(full)) > 2
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_operators_without_cpu_kernel_are_reported(tmp_path: Path) -> None:
    report = convert_to_float16(Toy().write(tmp_path / "float"), tmp_path / "half")
    assert report.no_cpu_kernel == ("MoE",)
    model = onnx.load(tmp_path / "half" / "model.onnx")
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "float")
    model = onnx.load(graph / "model.onnx")
    norm = next(tensor for tensor in model.graph.initializer if tensor.name == "model.norm.weight")
    norm.raw_data = np.full(96, 1e5, np.float32).tobytes()
    onnx.save(model, graph / "model.onnx")
    with pytest.raises(
        InputError, match=r"model.norm.weight holds 100000, beyond the 65504 that float16 can hold"
    ):
        convert_to_float16(graph, tmp_path / "half")


def test_a_float16_graph_is_refused(dense: Path, tmp_path: Path) -> None:
    convert_to_float16(dense, tmp_path / "half")
    with pytest.raises(InputError, match="in float16 already"):
        convert_to_float16(tmp_path / "half", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_portable_form_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="portable form"):
        convert_to_float16(dense.parent / "portable", tmp_path / "half")


def _run(graph: Path) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(graph / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(3, 130, (1, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(16)[None]}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            dtype = np.float16 if "float16" in value.type else np.float32
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    return session.run(None, feeds)


def test_graphs_in_fewer_bits_are_refused(dense: Path, tmp_path: Path) -> None:
    calibration = Calibration(tuple(np.random.default_rng(0).integers(0, 131, (8, 40))))
    quantize_cache(dense, tmp_path / "cache", calibration)
    quantize_with_ort(dense, tmp_path / "qdq", method="qdq-dynamic")
    quantize_graph(dense, tmp_path / "int4", precision="int4")
    for graph, words in (
        ("cache", "has its cache in 8 bits"),
        ("qdq", "is quantized already, by DequantizeLinear, MatMulInteger: give the float graph"),
        ("int4", "is quantized already, by GatherBlockQuantized, MatMulNBits: give the float graph"),
    ):
        with pytest.raises(InputError, match=words):
            convert_to_float16(tmp_path / graph, tmp_path / "half")
    assert not (tmp_path / "half").exists()
