"""Opening engines by name, and what is said when one cannot be."""

import subprocess
import sys

import numpy as np
import pytest

from llama4_pipeline import device
from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime import engines
from llama4_pipeline.runtime.engines import ENGINES, EngineUnavailable, open_decoder


def test_opens_what_it_names(tiny_random_checkpoint, fused_graph):
    graph = open_decoder("onnxruntime", graph=fused_graph, threads=1)
    model = open_decoder("pytorch", checkpoint=tiny_random_checkpoint, threads=1)
    ids = np.array([[1, 2, 3]])
    assert (graph.engine, model.engine) == ("onnxruntime", "pytorch")
    np.testing.assert_allclose(graph.forward(ids), model.forward(ids), atol=5e-5)
    assert model.providers() == {"PyTorch": 0}
    assert (
        model.cache_bytes() == 4 * 2 * 2 * 16 * 3 * 4
    )  # layers, key and value, KV heads, head size, tokens, float32


def test_half_precision_of_pytorch(tiny_random_checkpoint):
    model = open_decoder("pytorch", checkpoint=tiny_random_checkpoint, dtype="bfloat16", threads=1)
    assert model.forward(np.array([[1, 2, 3]])).dtype == np.float32


@pytest.mark.parametrize("engine", ["llama.cpp", "tensorrt-llm"])
def test_a_missing_library_is_named_with_the_remedy(engine, tmp_path):
    if ENGINES[engine].missing("cpu") is None:
        pytest.skip(f"{engine} is installed")
    with pytest.raises(EngineUnavailable, match="not installed; pip install"):
        open_decoder(engine, checkpoint=tmp_path)


def test_bad_requests_are_named(fused_graph, tiny_random_checkpoint):
    with pytest.raises(InputError, match="unknown; use one of pytorch, torch-compile, onnxruntime"):
        open_decoder("onnx", graph=fused_graph)
    with pytest.raises(InputError, match="device 'tpu' is unknown"):
        open_decoder("onnxruntime", graph=fused_graph, device="tpu")
    with pytest.raises(InputError, match="runs a graph; give that alone"):
        open_decoder("onnxruntime", checkpoint=tiny_random_checkpoint)
    with pytest.raises(InputError, match="runs a checkpoint; give that alone"):
        open_decoder("pytorch", graph=fused_graph, checkpoint=tiny_random_checkpoint)


def test_the_registry_imports_no_engine():
    heavy = "{'torch', 'onnxruntime', 'transformers', 'llama_cpp', 'tensorrt_llm'}"
    code = f"import sys, llama4_pipeline.runtime.engines; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_build_for_the_cpu_is_told_where_a_gpu_is_asked_for(monkeypatch, tiny_random_checkpoint):
    monkeypatch.setattr(engines, "first_gpu", lambda: "NVIDIA H100")
    monkeypatch.setattr(device.importlib.metadata, "version", {"torch": "2.13.0+cpu"}.__getitem__)
    with pytest.raises(
        EngineUnavailable, match="PyTorch is missing or a build for the CPU; make setup EXTRAS=gpu"
    ):
        open_decoder("pytorch", checkpoint=tiny_random_checkpoint, device="cuda")
