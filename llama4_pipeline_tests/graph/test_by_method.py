"""Every method that can be asked for by name is there, on the terms that its name promises."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph import quantize as weight_methods
from llama4_pipeline.graph.by_method import quantize
from llama4_pipeline.graph.convert import is_float16
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.methods import METHODS, QAT, QDQ_DYNAMIC, QDQ_STATIC
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

_TEXT = Calibration((np.arange(3, 40),))


def test_the_table_names_every_method() -> None:
    assert METHODS.keys() == weight_methods.METHODS.keys() | {QAT, QDQ_DYNAMIC, QDQ_STATIC}


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


@pytest.mark.parametrize("method", ["k_quant", "gptq"])
def test_a_graph_for_cuda_is_in_float16(method: str, tmp_path: Path) -> None:
    """Where calibration runs what was written, too."""
    wide = Checkpoint.open(write_random_checkpoint(tmp_path / "wide", hidden_size=64))
    fused, out = tmp_path / "fused", tmp_path / "out"
    export_in_one_stream(wide, fused, form="fused", precision="fp32", max_context=64)
    text = _TEXT if METHODS[method].calibration == "needed" else None
    quantize(fused, out, precision="int4", method=method, calibration=text, device="cuda")
    model = load_graph(out)
    assert is_float16(model)
    assert {"QMoE", "MatMulNBits"} <= {node.op_type for node in model.graph}
    assert not [value.name for value in model.graph.initializers.values() if value.dtype is ir.DataType.FLOAT]
    assert not list(out.glob(".*"))


def test_a_method_of_the_cpu_is_refused_for_cuda(fused_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="qdq-dynamic makes graphs for the CPU: choose another for CUDA, as k_quant"
    ):
        quantize(fused_graph, tmp_path, precision="int8", method=QDQ_DYNAMIC, device="cuda")


@pytest.mark.parametrize("made_by", ["rtn", QDQ_DYNAMIC, QDQ_STATIC])
def test_a_quantized_graph_is_refused(
    made_by: str, fused_graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    text = _TEXT if METHODS[made_by].calibration == "needed" else None
    quantize(fused_graph, tmp_path / "int8", precision="int8", method=made_by, calibration=text)
    for method, terms in METHODS.items():
        with pytest.raises(
            InputError, match=r"int8 is quantized already, by .+: give the float graph that it was made"
        ):
            quantize(
                tmp_path / "int8",
                tmp_path / "out",
                precision=terms.precisions[0],
                method=method,
                calibration=_TEXT if terms.calibration == "needed" else None,
                checkpoint=checkpoint if method == QAT else None,
            )
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_refused(fused_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown method 'guess': choose one of rtn, k_quant"):
        quantize(fused_graph, tmp_path, precision="int8", method="guess")


def test_the_portable_form_is_refused(tmp_path: Path) -> None:
    """Of a dense model too, whose matrices any operator could take."""
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", moe_layers=[]))
    portable = tmp_path / "portable"
    export_graph(checkpoint, portable, max_context=64)
    for method in ("rtn", "gptq", QDQ_DYNAMIC, QDQ_STATIC):
        text = _TEXT if METHODS[method].calibration == "needed" else None
        with pytest.raises(InputError, match="portable is the portable form: give a graph written by"):
            quantize(portable, tmp_path / "out", precision="int8", method=method, calibration=text)
