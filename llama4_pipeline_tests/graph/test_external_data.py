import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import PiecewiseTensor, load_graph, rows, save_graph


def test_piecewise_weight_is_written_piece_by_piece_and_read_by_rows(
    portable_graph: Path, tmp_path: Path
) -> None:
    model = load_graph(portable_graph)
    value = model.graph.initializers["lm_head.weight"]
    assert value.const_value is not None
    expected = value.const_value.numpy().copy()
    alive = []

    def pieces():
        for row in expected:
            alive.append(row)
            yield row

    value.const_value = PiecewiseTensor("lm_head.weight", ir.DataType.FLOAT, expected.shape, pieces)
    save_graph(model, tmp_path / "out", share_weights=False)

    written = load_graph(tmp_path / "out").graph.initializers["lm_head.weight"].const_value
    assert len(alive) == len(expected)
    np.testing.assert_array_equal(rows(written, 3, 7), expected[3:7])


def test_shared_weights_outlive_the_directory_they_came_from(portable_graph: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(portable_graph, source)
    model = load_graph(source)
    before = model.graph.initializers["model.norm.weight"].const_value.numpy().copy()

    save_graph(model, tmp_path / "out", share_weights=True)
    shutil.rmtree(source)

    after = load_graph(tmp_path / "out").graph.initializers["model.norm.weight"].const_value
    np.testing.assert_array_equal(after.numpy(), before)


def test_piece_of_the_wrong_size_is_an_error(portable_graph: Path, tmp_path: Path) -> None:
    model = load_graph(portable_graph)
    value = model.graph.initializers["lm_head.weight"]
    value.const_value = PiecewiseTensor(
        "lm_head.weight", ir.DataType.FLOAT, (48, 131), lambda: iter([np.zeros(5)])
    )

    with pytest.raises(ValueError, match=r"lm_head\.weight: 40 bytes written"):
        save_graph(model, tmp_path / "out", share_weights=True)


def test_directory_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        load_graph(tmp_path)
