"""Every method that can be asked for by name is there, on the terms that its name promises."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph import quantize as weight_methods
from llama4_pipeline.graph.by_method import quantize
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.methods import METHODS, QAT, QDQ_DYNAMIC, QDQ_STATIC

_TEXT = Calibration((np.arange(3, 40),))


def test_the_table_of_names_says_what_the_methods_say() -> None:
    assert METHODS.keys() == weight_methods.METHODS.keys() | {QAT, QDQ_DYNAMIC, QDQ_STATIC}
    for name, method in weight_methods.METHODS.items():
        assert (METHODS[name].calibration == "needed") == method.needs_calibration


@pytest.mark.parametrize("method", [name for name in METHODS if name != QAT])  # test_qat.py trains
def test_a_method_leaves_its_name_in_the_report(method: str, fused_graph: Path, tmp_path: Path) -> None:
    terms = METHODS[method]
    report = quantize(
        fused_graph,
        tmp_path,
        precision=terms.precisions[0],
        method=method,
        calibration=_TEXT if terms.calibration == "needed" else None,
    ).to_json()
    assert (report["method"], report["precision"]) == (method, terms.precisions[0])
    assert (tmp_path / "model.onnx").is_file() and (tmp_path / "config.json").is_file()


def test_an_unknown_method_is_refused(fused_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown method 'guess': choose one of rtn, k_quant"):
        quantize(fused_graph, tmp_path, precision="int8", method="guess")
