import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph, save_graph
from llama4_pipeline.graph.streamed_tensor import PiecewiseTensor, TransposedTensor
from llama4_pipeline_tests.graph.stored import stored_array


@pytest.mark.parametrize("sizes", [[131], [1, 100, 30], [1] * 131])
def test_streamed_weights_are_written_piece_by_piece(
    portable_graph: Path, tmp_path: Path, sizes: list[int]
) -> None:
    model = load_graph(portable_graph)
    graph = model.graph
    expected = np.random.default_rng(0).standard_normal((48, 131)).astype(np.float16)
    cuts = np.cumsum(sizes)[:-1]
    graph.initializers["lm_head.weight"].const_value = TransposedTensor(
        "lm_head.weight", ir.DataType.FLOAT, (48, 131), lambda: iter(np.split(expected.T, cuts))
    )
    graph.initializers["model.embed_tokens.weight"].const_value = PiecewiseTensor(
        "model.embed_tokens.weight", ir.DataType.FLOAT, (131, 48), lambda: iter(np.split(expected.T, cuts))
    )

    save_graph(model, tmp_path / "out", share_weights=False)

    written = load_graph(tmp_path / "out").graph.initializers
    np.testing.assert_array_equal(stored_array(written["lm_head.weight"]), expected.astype(np.float32))
    np.testing.assert_array_equal(stored_array(written["model.embed_tokens.weight"]), expected.T)
    np.testing.assert_array_equal(
        stored_array(written["model.norm.weight"]), stored_array(graph.initializers["model.norm.weight"])
    )


def test_shared_weights_outlive_the_directory_they_came_from(portable_graph: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(portable_graph, source)
    model = load_graph(source)
    before = stored_array(model.graph.initializers["model.norm.weight"])

    save_graph(model, tmp_path / "out", share_weights=True)
    shutil.rmtree(source)

    after = load_graph(tmp_path / "out").graph.initializers["model.norm.weight"]
    np.testing.assert_array_equal(stored_array(after), before)


def test_piece_of_the_wrong_size_is_an_error(portable_graph: Path, tmp_path: Path) -> None:
    model = load_graph(portable_graph)
    value = model.graph.initializers["lm_head.weight"]
    value.const_value = PiecewiseTensor(
        "lm_head.weight", ir.DataType.FLOAT, (48, 131), lambda: iter([np.zeros(5)])
    )

    with pytest.raises(ValueError, match=r"lm_head\.weight: 20 bytes written"):
        save_graph(model, tmp_path / "out", share_weights=True)


def test_directory_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        load_graph(tmp_path)


@pytest.mark.parametrize("location", ["../elsewhere.data", "/etc/passwd", "sub/../../elsewhere.data"])
def test_a_graph_that_points_out_of_its_directory_is_refused(
    portable_graph: Path, tmp_path: Path, location: str
) -> None:
    proto = onnx.load(portable_graph / "model.onnx", load_external_data=False)
    [tensor, *_] = [tensor for tensor in proto.graph.initializer if tensor.external_data]
    [place] = [entry for entry in tensor.external_data if entry.key == "location"]
    place.value = location
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=f"{tensor.name} lies at {location}, outside its directory"):
        load_graph(tmp_path)
