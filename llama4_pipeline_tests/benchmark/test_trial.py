"""Variants of a graph are tried apart, and one that is refused says why."""

from pathlib import Path

import onnx
import pytest

from llama4_pipeline_tests.benchmark.trial import Trial, Variant, let_attention_rotate

_CATALOG = """
[models.small]
source = "random"
description = "small"
dtype = "float32"
max_context = 512

[models.small.config]
vocab_size = 64
hidden_size = 64
intermediate_size = 64
intermediate_size_mlp = 64
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
num_local_experts = 4
moe_layers = [1, 3]
rope_parameters = { rope_type = "default", rope_theta = 10000.0 }
"""


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(_CATALOG)
    monkeypatch.setenv("LLAMA4_PIPELINE_CATALOG", str(catalog))
    ways = [Variant("usual", "int8"), Variant("rotates", "int8", rotates=True), Variant("eager", "float32")]
    trial = Trial(tmp_path, "small", None, ways, "cpu")
    trial.write_checkpoint()
    return trial


def test_what_runs_is_measured_and_what_is_refused_says_why(trial: Trial) -> None:
    assert trial.graphs() == ["int8", "int8-rotates"]
    for graph in trial.graphs():
        trial.make(graph)
    usual, rotates, eager = trial.results()
    assert usual.refused is None and eager.refused is None
    assert set(usual.cosine) == {"prompt", "steps", "rows"} and min(usual.cosine.values()) > 0.99
    assert usual.sweep and usual.sweep.decode_ms.keys() == {16, 2047}
    assert "q_norm_weight" in str(rotates.refused)  # which the CPU's attention has no kernel for
    assert rotates.sweep is None


def test_attention_that_rotates_stands_for_four_nodes(trial: Trial) -> None:
    trial.make("int8")
    file = trial.scratch / "small-int8" / "model.onnx"
    before = len(onnx.load(file, load_external_data=False).graph.node)
    assert let_attention_rotate(file) == 3  # the fourth layer has no positions
    model = onnx.load(file, load_external_data=False)
    assert before - len(model.graph.node) == 3 * 4
    onnx.checker.check_model(file)
    with pytest.raises(ValueError, match="no attention behind a rotation"):
        let_attention_rotate(file)
