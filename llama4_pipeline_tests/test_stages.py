"""Parameters of stages that a model of the catalog decides."""

import shutil
from pathlib import Path

import pytest

from llama4_pipeline.artifacts import code_version
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import DataPlan, ModelSpec, QuantizationPlan, load_catalog
from llama4_pipeline.device import Device
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.checkpoint_directory import TOKENIZER_FILES
from llama4_pipeline.pipeline import run_stage
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.cli.small_disk import small_disk

CPU = Device("cpu", "a test")
_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "moe_layers": []}


def _model(source: str = "hub:some/model", **keys: object) -> ModelSpec:
    return ModelSpec(name="mine", description="", source=source, max_context=256, **keys)


def test_a_users_text_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    own, store = tmp_path / "own.jsonl", Store(tmp_path / "store")
    own.write_text('{"text": "words that nobody has written before"}\n')
    model = _model("random", config=_SMALL, data=DataPlan(validation=str(own)))
    run_stage(STAGES["checkpoint"], model, store, CPU)
    first = run_stage(STAGES["datasets"], model, store, CPU)
    assert (first.artifact.directory / "validation.jsonl").read_text() == own.read_text()
    assert run_stage(STAGES["datasets"], model, store, CPU).reused
    own.write_text('{"text": "other words"}\nno JSON\n')
    with pytest.raises(InputError, match=r"own.jsonl, line 2: not JSON"):
        run_stage(STAGES["datasets"], model, store, CPU)
    own.unlink()
    with pytest.raises(InputError, match=r"own.jsonl: no such data file; correct the model's data"):
        run_stage(STAGES["datasets"], model, store, CPU)


def test_quantized_graphs_are_made_for_the_device_that_measures_them() -> None:
    for device in (CPU, Device("cuda", "a test")):
        for name in ("int8_graph", "int4_graph"):
            assert STAGES[name].parameters(_model(), device)["device"] == device.name


def test_a_models_method_takes_the_place_of_the_default() -> None:
    stages = [STAGES[name] for name in ("int8_graph", "int4_graph")]
    small = _model(config=_SMALL)
    assert [stage.parameters(small, CPU)["method"] for stage in stages] == ["k_quant", "mixed"]
    chosen = _model(quantization=QuantizationPlan(int8="qdq-dynamic", int4="qat"))
    assert [stage.parameters(chosen, CPU)["method"] for stage in stages] == ["qdq-dynamic", "qat"]


_TEXT = {"datasets": ["calibration.jsonl"]}


@pytest.mark.parametrize(
    ("method", "read"),
    [("rtn", {}), ("k_quant", {}), ("gptq", _TEXT), ("qat", {"checkpoint": None, **_TEXT})],
)
def test_a_method_depends_on_what_it_reads(method: str, read: dict[str, list[str] | None]) -> None:
    model = _model(quantization=QuantizationPlan(int4=method))
    assert STAGES["int4_graph"].deciding_inputs(model, CPU) == {"optimized_graph": None, **read}


def test_quality_depends_on_the_texts_that_tell_it() -> None:
    judged = ["validation.jsonl", "summarise.jsonl", "classify.jsonl"]
    for name in ("pytorch_baseline", "benchmarks"):
        assert list(STAGES[name].deciding_inputs(_model(), CPU)["datasets"] or ()) == judged
        assert "datasets" not in STAGES[name].deciding_inputs(_model("random", config=_SMALL), CPU)


def test_a_benchmark_depends_on_the_graphs_that_it_measures() -> None:
    for device, unmeasured in ((CPU, "fp16_graph"), (Device("cuda", "a test"), "optimized_graph")):
        stage = STAGES["benchmarks"]
        assert set(stage.inputs) - set(stage.deciding_inputs(_model(), device)) == {unmeasured}


def test_a_large_model_is_not_brought_where_it_is_not_run() -> None:
    """Its checkpoint has hundreds of gigabytes."""
    large = load_catalog()["scout"].model_copy(update={"source": "hub:some/model"})
    for name in ("int8_graph", "int4_graph"):
        assert "checkpoint" not in STAGES[name].deciding_inputs(large, CPU)
    assert STAGES["datasets"].deciding_inputs(large, CPU) == {"checkpoint": TOKENIZER_FILES}
    nothing_compared = _model("random", config=_SMALL)
    assert STAGES["quantization_tradeoff"].deciding_inputs(nothing_compared, CPU) == {}


def test_a_file_that_is_not_taken_makes_no_other_checkpoint(
    tiny_random_checkpoint: Path, tmp_path: Path
) -> None:
    source, store = tmp_path / "source", Store(tmp_path / "store")
    shutil.copytree(tiny_random_checkpoint, source)
    run_stage(STAGES["checkpoint"], _model(f"local:{source}"), store, CPU)
    (source / "train.log").write_text("step 1")
    assert run_stage(STAGES["checkpoint"], _model(f"local:{source}"), store, CPU).reused
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert not run_stage(STAGES["checkpoint"], _model(f"local:{source}"), store, CPU).reused


def test_a_model_of_unknown_size_is_not_run_for_its_quantization() -> None:
    assert STAGES["int4_graph"].parameters(_model(), CPU)["method"] == "k_quant"
    assert not STAGES["datasets"].parameters(_model(), CPU)["cover_experts"]


def test_a_local_checkpoint_is_linked_where_it_can_be(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    model = _model(f"local:{tiny_random_checkpoint}")
    made = run_stage(STAGES["checkpoint"], model, Store(tmp_path), CPU).artifact
    weights = "model.safetensors"
    assert (made.directory / weights).samefile(tiny_random_checkpoint / weights)


def test_a_copy_that_the_disk_has_no_room_for_is_refused(
    tiny_random_checkpoint: Path, tmp_path: Path
) -> None:
    model = _model(f"local:{tiny_random_checkpoint}")
    with (
        small_disk(tmp_path / "disk", kilobytes=256) as disk,
        pytest.raises(InputError, match=r"no space for checkpoint of mine in .*: 5.. kB needed, 2.. kB free"),
    ):
        run_stage(STAGES["checkpoint"], model, Store(disk), CPU)


@pytest.mark.parametrize("name", ["pytorch_baseline", "benchmarks"])
def test_the_code_that_measures_in_a_process_of_its_own_decides(name: str) -> None:
    module = STAGES[name].build.partition(":")[0]
    assert {"llama4_pipeline.metrics.bench", "llama4_pipeline.runtime.ort"} <= code_version._reachable(module)


@pytest.mark.parametrize("name", ["benchmark_table", "report"])
def test_what_shows_figures_does_not_depend_on_the_code_that_measures_them(name: str) -> None:
    reached = code_version._reachable(STAGES[name].build.partition(":")[0])
    assert not [
        module for module in reached if module.split(".")[1:2] in (["graph"], ["runtime"], ["llama4"])
    ]
