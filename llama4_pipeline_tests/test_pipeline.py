"""What runs and why: every kind of change, over real builds of a small pipeline written for the test."""

import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from llama4_pipeline import pipeline
from llama4_pipeline.artifacts import code_version, recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import BenchmarkPlan, ModelSpec
from llama4_pipeline.device import Device
from llama4_pipeline.errors import InputError
from llama4_pipeline.pipeline import Outcome, State, plan, run_stage
from llama4_pipeline.preflight import Room
from llama4_pipeline.stages import STAGES, Stage

CPU = Device("cpu", "a test")
MODULES = {
    "__init__": "",
    "checkpoint": """
        def build(inputs, parameters, out):
            (out / "weights").write_text(str(parameters["seed"]))
            return {}
        """,
    "export": """
        def build(inputs, parameters, out):
            (out / "model.onnx").write_text("graph of " + (inputs["checkpoint"] / "weights").read_text())
            return {}
        """,
    "simplify": """
        def build(inputs, parameters, out):
            (out / "model.onnx").write_text((inputs["exported"] / "model.onnx").read_text().strip())
            return {}
        """,
    "quantize": """
        def build(inputs, parameters, out):
            (out / "model.onnx").write_text((inputs["simplified"] / "model.onnx").read_text() + str(parameters))
            return {}
        """,
    "measure": """
        import time
        def build(inputs, parameters, out):
            (out / "seconds").write_text(str(time.monotonic_ns()))
            return {}
        """,
}


def _seed(model: ModelSpec, device: Device) -> dict[str, int]:
    return {"seed": model.seed}


def _block_size(model: ModelSpec, device: Device) -> dict[str, int]:
    return {"block_size": 32}


def _larger_blocks(model: ModelSpec, device: Device) -> dict[str, int]:
    return {"block_size": 64}


def _for_device(model: ModelSpec, device: Device) -> dict[str, str]:
    return {"device": device.name}


SMALL_STAGES = (
    Stage("checkpoint", "", build="small.checkpoint:build", parameters=_seed),
    Stage("exported", "", build="small.export:build", inputs=("checkpoint",), libraries=("pydantic",)),
    Stage("simplified", "", build="small.simplify:build", inputs=("exported",)),
    Stage("int4", "", build="small.quantize:build", inputs=("simplified",), parameters=_block_size),
    Stage("measured", "", build="small.measure:build", inputs=("simplified", "int4"), measures=True),
)
ALL = tuple(stage.name for stage in SMALL_STAGES)


@dataclass
class Bench:
    """A store, the package that the stages run, and the stages; what a case changes."""

    store: Store
    package: Path
    monkeypatch: pytest.MonkeyPatch
    model: ModelSpec
    other: ModelSpec

    def write(self, module: str, text: str) -> None:
        (self.package / f"{module}.py").write_text(text)
        for cached in (code_version._read, code_version._file_of, code_version._root_of):
            cached.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "small"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def replace_in(self, module: str, old: str, new: str) -> None:
        text = (self.package / f"{module}.py").read_text()
        assert old in text
        self.write(module, text.replace(old, new))

    def use(self, *stages: Stage) -> None:
        self.monkeypatch.setattr(pipeline, "STAGES", MappingProxyType({each.name: each for each in stages}))

    def run(self, model: ModelSpec, anew: bool = False) -> dict[str, str]:
        """Runs every stage; returns those that were built, with the reason."""
        outcomes = {
            stage.name: run_stage(stage, model, self.store, CPU, anew and stage.measures)
            for stage in pipeline.STAGES.values()
        }
        return {name: outcome.reason for name, outcome in outcomes.items() if not outcome.reused}

    def planned(self, model: ModelSpec, state: State) -> dict[str, str]:
        return {each.stage: each.reason for each in plan(model, self.store, CPU) if each.state is state}

    def artifact(self, stage: str) -> Path:
        return self.store.input_of(self.model.name, stage).directory


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small").mkdir()
    model = ModelSpec(
        name="one",
        description="",
        source="hub:a/b",
        max_context=16,
        benchmark=BenchmarkPlan(prompt_tokens=8, new_tokens=4),
    )
    other = model.model_copy(update={"name": "two", "seed": 2})
    made = Bench(Store(tmp_path / "artifacts"), tmp_path / "small", monkeypatch, model, other)
    for name, text in MODULES.items():
        made.write(name, textwrap.dedent(text))
    made.use(*SMALL_STAGES)
    yield made
    made.write("__init__", "")


def nothing(bench: Bench) -> None:
    pass


def another_parameter(bench: Bench) -> None:
    bench.use(*(replace(s, parameters=_larger_blocks) if s.name == "int4" else s for s in SMALL_STAGES))


def other_code(bench: Bench) -> None:
    bench.replace_in("simplify", ".strip()", ".upper()")


def other_code_with_the_same_result(bench: Bench) -> None:
    bench.replace_in("simplify", ".strip()", ".rstrip()")


def a_comment(bench: Bench) -> None:
    bench.replace_in("simplify", "def build", "# how it is done\ndef build")


def another_checkpoint(bench: Bench) -> None:
    bench.model = bench.model.model_copy(update={"seed": 1})


def another_library(bench: Bench) -> None:
    bench.monkeypatch.setattr(recipe.importlib.metadata, "version", lambda name: "99.0")


def a_deleted_artifact(bench: Bench) -> None:
    directory = bench.artifact("simplified")
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def a_corrupted_artifact(bench: Bench) -> None:
    file = bench.artifact("simplified") / "model.onnx"
    before = file.stat()
    file.write_text(file.read_text()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


Change = Callable[[Bench], None]


@pytest.mark.parametrize(
    ("change", "runs", "may_run", "reason", "everywhere"),
    [
        (nothing, (), (), None, True),
        (another_parameter, ("int4", "measured"), ("measured",), "parameter block_size: 32 -> 64", True),
        (other_code, ALL[2:], ALL[3:], "code changed", True),
        (other_code_with_the_same_result, ("simplified",), ALL[3:], "code changed", True),
        (a_comment, (), (), None, True),
        (another_checkpoint, ALL, ALL[1:], "parameter seed: 0 -> 1", False),
        (another_library, ("exported",), ALL[2:], "library pydantic: ", True),
        (a_deleted_artifact, ("simplified",), ALL[3:], "artifact deleted", False),
        (
            a_corrupted_artifact,
            ("simplified",),
            ALL[3:],
            "artifact damaged: model.onnx has other content",
            False,
        ),
    ],
)
def test_exactly_what_is_invalid_runs(
    bench: Bench,
    change: Change,
    runs: tuple[str, ...],
    may_run: tuple[str, ...],
    reason: str | None,
    everywhere: bool,
) -> None:
    """Each change makes one stage invalid for sure; `everywhere`: in every partition, not in this one alone."""
    assert tuple(bench.run(bench.model)) == ALL
    other = bench.run(bench.other)
    assert set(other.values()) == {"never built"}
    change(bench)
    surely = bench.planned(bench.model, State.RUN)
    possibly = bench.planned(bench.model, State.IF_INPUT_CHANGES)
    built = bench.run(bench.model)
    assert tuple(built) == runs
    assert (tuple(surely), tuple(possibly)) == (runs[:1], may_run)
    if reason:
        first = runs[0]
        assert built[first].startswith(reason)
        assert surely[first] == built[first], "plan says before what the run says after"
    assert bench.run(bench.model) == {}
    assert tuple(bench.run(bench.other)) == (runs if everywhere else ())


def test_an_input_that_a_stage_does_not_read_for_a_model_decides_nothing(bench: Bench) -> None:
    quantized = Stage(
        "int4",
        "",
        build="small.quantize:build",
        inputs=("exported", "simplified"),
        parameters=_block_size,
        reads=lambda model, device: {"exported": []} if model.name == "one" else {},
    )
    bench.use(*SMALL_STAGES[:3], quantized)
    bench.run(bench.model), bench.run(bench.other)
    bench.replace_in("export", '"graph of "', '" graph of "')  # which simplify makes the same again
    possibly = {"simplified": "exported may change", "int4": "simplified may change"}
    assert bench.planned(bench.model, State.IF_INPUT_CHANGES) == possibly
    assert tuple(bench.run(bench.model)) == ("exported", "simplified")
    assert bench.run(bench.other)["int4"] == "input exported changed"
    for model in (bench.model, bench.other):
        shutil.rmtree(bench.store.input_of(model.name, "exported").local)
    bench.replace_in("quantize", "return {}", "return {'bits': 4}")
    assert not run_stage(quantized, bench.model, bench.store, CPU).reused
    with pytest.raises(InputError, match="exported of two is gone"):
        run_stage(quantized, bench.other, bench.store, CPU)


def test_of_an_input_the_files_that_a_stage_reads_decide(bench: Bench) -> None:
    bench.replace_in("export", "return {}", '(out / "words").write_text("some"); return {}')
    *_, simplified = SMALL_STAGES[:3]
    bench.use(*SMALL_STAGES[:2], replace(simplified, reads=lambda *_: {"exported": ["model.onnx"]}))
    bench.run(bench.model)
    bench.replace_in("export", '"some"', '"other"')
    possibly = {"simplified": "exported may change"}
    assert bench.planned(bench.model, State.IF_INPUT_CHANGES) == possibly
    assert tuple(bench.run(bench.model)) == ("exported",)
    assert bench.planned(bench.model, State.REUSE).keys() == {"checkpoint", "exported", "simplified"}
    bench.replace_in("export", '"graph of "', '"a graph of "')
    assert bench.run(bench.model)["simplified"] == "input exported changed"


def test_going_back_to_old_code_finds_the_old_artifact(bench: Bench) -> None:
    bench.run(bench.model)
    other_code(bench)
    bench.run(bench.model)
    bench.replace_in("simplify", ".upper()", ".strip()")
    assert bench.run(bench.model) == {}
    assert bench.store.input_of("one", "simplified").manifest.recipe == bench.store.latest(
        "one", "simplified"
    )


def test_a_measurement_is_repeated_on_demand_and_replaces_the_old(bench: Bench) -> None:
    bench.run(bench.model)
    before = bench.store.input_of("one", "measured")
    assert bench.run(bench.model, anew=True) == {"measured": "measured anew"}
    after = bench.store.input_of("one", "measured")
    assert after.digest != before.digest
    assert bench.run(bench.model) == {}
    assert bench.store.input_of("one", "measured") == after


def test_a_measurement_waits_for_the_end_of_what_is_being_made(bench: Bench) -> None:
    bench.run(bench.model)
    measurements: list[Future[Outcome]] = []

    def make(out: Path) -> Mapping[str, Any]:
        measuring = pool.submit(
            run_stage, pipeline.STAGES["measured"], bench.model, bench.store, CPU, anew=True
        )
        measurements.append(measuring)
        assert not wait([measuring], timeout=0.3).done
        (out / "something").touch()
        return {}

    with ThreadPoolExecutor() as pool:
        bench.store.get_or_make(recipe.Recipe(stage="another", model="two", code_version="1"), make)
    [measuring] = measurements
    assert measuring.result().reason == "measured anew"


def test_a_measurement_that_was_short_of_memory_is_repeated_once_it_is_free(bench: Bench) -> None:
    bench.replace_in("measure", "return {}", "return {'short_of_memory': 10}")
    room = Room(memory_bytes=9, disk_bytes=0)
    bench.monkeypatch.setattr(pipeline, "room", lambda directory: room)
    bench.run(bench.model)
    assert bench.run(bench.model) == {}
    room = Room(memory_bytes=10, disk_bytes=0)
    why = {"measured": "memory that was short is free now"}
    assert bench.planned(bench.model, State.RUN) == why
    assert bench.run(bench.model) == why


def test_a_measurement_of_another_machine_does_not_count(bench: Bench) -> None:
    bench.run(bench.model)
    bench.monkeypatch.setattr(Device, "machine", lambda self: {"cpu": "another"})
    [(stage, reason)] = bench.planned(bench.model, State.RUN).items()
    assert stage == "measured" and "machine cpu: " in reason


def test_what_was_made_for_another_device_is_not_measured(bench: Bench) -> None:
    made_for = [replace(s, parameters=_for_device) if s.name == "int4" else s for s in SMALL_STAGES]
    bench.use(*made_for)
    bench.run(bench.model)
    run_stage(pipeline.STAGES["int4"], bench.model, bench.store, Device("cuda", "a test"))
    says = (
        r"int4 of one was made for cuda, and cpu is what is measured here \(a test\): materialize int4 first"
    )
    with pytest.raises(InputError, match=says):
        run_stage(pipeline.STAGES["measured"], bench.model, bench.store, CPU, anew=True)
    assert "measured" in bench.run(bench.model, anew=True)


def test_what_was_made_from_another_checkpoint_is_not_measured_beside_it(bench: Bench) -> None:
    """A run that stopped at the gate leaves a new checkpoint beside the graphs of the old one."""
    *made, measured = SMALL_STAGES
    bench.use(*made, replace(measured, inputs=("checkpoint", "exported")))
    bench.run(bench.model)
    another_checkpoint(bench)
    run_stage(pipeline.STAGES["checkpoint"], bench.model, bench.store, CPU)
    says = "exported of one was made from another checkpoint, and both are measured here: materialize exported first"
    with pytest.raises(InputError, match=says):
        run_stage(pipeline.STAGES["measured"], bench.model, bench.store, CPU, anew=True)
    assert "measured" in bench.run(bench.model)


def test_nor_what_was_made_from_it_by_way_of_a_graph_that_is_not_measured(bench: Bench) -> None:
    """As the quantized graphs of a GPU, which measures no float32 graph."""
    *made, measured = SMALL_STAGES
    inputs = ("checkpoint", "exported", "simplified")
    bench.use(*made, replace(measured, inputs=inputs, reads=lambda *_: {"exported": []}))
    bench.run(bench.model)
    another_checkpoint(bench)
    run_stage(pipeline.STAGES["checkpoint"], bench.model, bench.store, CPU)
    with pytest.raises(InputError, match="exported of one was made from another checkpoint"):
        run_stage(pipeline.STAGES["measured"], bench.model, bench.store, CPU, anew=True)
    run_stage(pipeline.STAGES["exported"], bench.model, bench.store, CPU)
    with pytest.raises(InputError, match="simplified of one was made from another exported"):
        run_stage(pipeline.STAGES["measured"], bench.model, bench.store, CPU, anew=True)


def test_a_stage_without_its_input_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(InputError, match="exported of one has not been built: materialize exported first"):
        run_stage(pipeline.STAGES["simplified"], bench.model, bench.store, CPU)


def test_the_plan_of_a_new_model(bench: Bench) -> None:
    assert bench.planned(bench.model, State.RUN) == dict.fromkeys(ALL, "never built")


def test_the_plan_tells_what_runs_behind_a_stage_that_may_come_out_the_same(bench: Bench) -> None:
    """int4 has a reason of its own; what is measured waits for both."""
    bench.run(bench.model)
    other_code(bench)
    another_parameter(bench)
    assert bench.planned(bench.model, State.RUN) == {
        "simplified": "code changed",
        "int4": "parameter block_size: 32 -> 64",
    }
    assert bench.planned(bench.model, State.IF_INPUT_CHANGES) == {"measured": "simplified, int4 may change"}


def test_the_table_of_stages_is_in_the_order_of_the_work() -> None:
    seen: set[str] = set()
    for stage in STAGES.values():
        assert seen.issuperset(stage.inputs), stage.name
        assert pipeline.stage_code_version(stage)
        seen.add(stage.name)


def test_a_model_of_unknown_size_runs_with_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    run_stage(pipeline.STAGES["checkpoint"], bench.model, bench.store, CPU)
    assert "whether there is room for checkpoint of one is not known beforehand" in caplog.text
