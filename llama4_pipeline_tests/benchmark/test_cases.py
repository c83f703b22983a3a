"""Which models and rows are measured."""

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline_tests.benchmark.cases import find_models, plan_of


def test_a_model_outside_the_suite_gets_every_row():
    [scout] = find_models(("scout",), "cpu")
    assert (scout.title, [entry.key for entry in scout.entries]) == ("scout, 4 layers", ["onnxruntime int4"])
    [other] = find_models(("7b",), "cpu")
    assert {entry.engine for entry in other.entries} == {
        "onnxruntime",
        "llama.cpp",
        "llama.cpp-no-flash-attention",
        "pytorch",
        "torch-compile",
    }
    with pytest.raises(InputError, match="no model 'mni' in the catalog"):
        find_models(("mni",), "cpu")


def test_slow_rows_get_less_on_the_cpu_only():
    [mini] = find_models(("mini",), "cpu")
    plans = {entry.key: plan_of(mini, entry, "cpu") for entry in mini.entries}
    assert plans["onnxruntime int4"].contexts == (16, 2048)
    assert plans["pytorch bfloat16"].contexts == (16,)
    [mini] = find_models(("mini",), "cuda")
    assert {plan_of(mini, entry, "cuda").contexts for entry in mini.entries} == {(16, 2048)}


def test_rows_of_some_engines_alone():
    [mini] = find_models(("mini",), "cuda", ("onnxruntime", "pytorch"))
    assert {entry.engine for entry in mini.entries} == {"onnxruntime", "pytorch"}
    with pytest.raises(InputError, match="engine 'onnx' is unknown"):
        find_models(("mini",), "cuda", ("onnx",))


def test_what_pytorch_multiplies_in_a_loop_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("llama4_pipeline.device.cpu_features", lambda: ("avx2",))
    [mini] = find_models(("mini",), "cpu", ("pytorch", "onnxruntime"))
    reasons = {entry.key: entry.missing("cpu", mini.has_experts) for entry in mini.entries}
    assert "in bfloat16 without avx512f" in str(reasons.pop("pytorch bfloat16"))
    assert not any(reasons.values())
    [dense] = find_models(("mobilellm-r1-950m",), "cpu", ("pytorch",))
    assert not any(entry.missing("cpu", dense.has_experts) for entry in dense.entries)
