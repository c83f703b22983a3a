"""What the engines open is made once, in the form that the device wants."""

from pathlib import Path

import onnx
import pytest

from llama4_pipeline.metrics.sweep import Plan
from llama4_pipeline_tests.benchmark.cases import Entry, Model
from llama4_pipeline_tests.benchmark.prepare import Workshop
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

_INT4 = Entry("onnxruntime", "int4")


@pytest.mark.parametrize(("device", "activations"), [("cpu", "FLOAT"), ("cuda", "FLOAT16")])
def test_int4_computes_in_what_the_device_has_kernels_for(
    device: str, activations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", hidden_size=64)
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        '[models.small]\nsource = "local:checkpoint"\ndescription = "small"\nmax_context = 512\n'
    )
    monkeypatch.setenv("LLAMA4_PIPELINE_CATALOG", str(catalog))
    workshop = Workshop(Model("small", True, None, (_INT4,), Plan()), tmp_path, device)
    graph = workshop.path(_INT4)
    assert workshop.path(_INT4) == graph
    model = onnx.load(graph / "model.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert types["past_key_values.0.key"] == getattr(onnx.TensorProto, activations)
    assert "QMoE" in {node.op_type for node in model.graph.node}
