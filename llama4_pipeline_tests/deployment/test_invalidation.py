"""What a change makes invalid, over real materializations of the real stages of a small model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.deployment.processes import ROOT

_PRESENTED = {"benchmark_table", "report"}
_OF_NO_WEIGHTS = {"datasets", "quantization_tradeoff"}  # where these are random, nothing is asked of them


class Installation:
    """A copy of the package whose code may be changed, with a store, a home and the models `tiny` and `small`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "llama4_pipeline"
        self.store = Store(root / "artifacts")
        shutil.copytree(ROOT / "llama4_pipeline", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        self.write_catalog()

    def write_catalog(self, seed: int = 0, of_tiny: str = "") -> None:
        """Another seed or more keys of `tiny`; `small` stays what it is."""
        tiny = CATALOG.format(seed=seed).replace("source", f"{of_tiny}\nsource", 1)
        small = CATALOG.format(seed=7).replace("models.tiny", "models.small")
        small = small.replace("source", 'description = "Another"\nsource', 1)
        (self.root / "catalog.toml").write_text(f"{tiny}{small}")

    def replace_in(self, file: str, old: str, new: str) -> None:
        text = (self.package / file).read_text()
        assert old in text
        (self.package / file).write_text(text.replace(old, new, 1))

    def planned(self, model: str) -> dict[str, str]:
        """Stages that would run at most, with the reason."""
        stages = self._command("plan", model)
        return {each["stage"]: each["reason"] for each in stages if each["state"] != "reuse"}

    def run(self, model: str) -> dict[str, str]:
        """Materializes everything; returns the stages that ran, with the reason that their metadata gives."""
        return {each["stage"]: each["why"] for each in self._command("run", model) if not each["reused"]}

    def _command(self, name: str, model: str) -> list[dict[str, str]]:
        environment = os.environ | {
            "PYTHONPATH": str(self.root),
            "DAGSTER_HOME": str(self.root),
            "LLAMA4_PIPELINE_ARTIFACTS": str(self.store.root),
            "LLAMA4_PIPELINE_CATALOG": str(self.root / "catalog.toml"),
        }
        command = [sys.executable, "-m", "llama4_pipeline.cli", name, "--model", model, "--json"]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        stages: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])["stages"]
        return stages


def nothing(installation: Installation) -> None:
    pass


def a_parameter_of_int4(installation: Installation) -> None:
    asked = "        if not self.has_trained_weights:"
    installation.replace_in(
        "catalog.py", asked, f'        if precision == "int4":\n            return "k_quant"\n{asked}'
    )


def code_of_simplify_to_the_same_bytes(installation: Installation) -> None:
    installation.replace_in("builders/simplify.py", "def build(", "_UNUSED = 1\n\n\ndef build(")
    installation.replace_in("builders/simplify.py", "    return ", "    assert _UNUSED\n    return ")


def a_comment_in_simplify(installation: Installation) -> None:
    installation.replace_in("graph/simplify.py", "\ndef ", "\n# How it is done.\ndef ")


def a_library(installation: Installation) -> None:
    """Another version of onnxsim, as far as its metadata tell."""
    metadata = installation.root / "onnxsim-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxsim\nVersion: 99.0\n")


def a_deleted_artifact(installation: Installation) -> None:
    shutil.rmtree(installation.store.input_of("tiny", "int8_graph").directory)


def a_corrupted_artifact(installation: Installation) -> None:
    file = installation.store.input_of("tiny", "simplified_graph").directory / "model.onnx"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def a_parameter_of_one_model(installation: Installation) -> None:
    installation.write_catalog(of_tiny='quantization.int8 = "k_quant"')


def another_checkpoint(installation: Installation) -> None:
    installation.write_catalog(seed=1)


Change = Callable[[Installation], None]
_TINY, _BOTH = ("tiny",), ("tiny", "small")
_CASES: tuple[tuple[Change, tuple[str, ...], set[str], str], ...] = (
    (nothing, (), set(), ""),
    (a_comment_in_simplify, (), set(), ""),
    (a_deleted_artifact, _TINY, {"int8_graph"}, "artifact deleted"),
    (a_corrupted_artifact, _TINY, {"simplified_graph"}, "artifact damaged: model.onnx has other content"),
    (code_of_simplify_to_the_same_bytes, _BOTH, {"simplified_graph"}, "code changed"),
    (a_library, _BOTH, {"simplified_graph"}, "library onnxsim: "),
    (
        a_parameter_of_int4,
        _BOTH,
        {"int4_graph", "benchmarks"} | _PRESENTED,
        'parameter method: "rtn" -> "k_quant"',
    ),
    (
        a_parameter_of_one_model,
        _TINY,
        {"int8_graph", "benchmarks"} | _PRESENTED,
        'parameter method: "rtn" -> "k_quant"',
    ),
    (another_checkpoint, _TINY, set(STAGES) - _OF_NO_WEIGHTS, "parameter seed: 0 -> 1"),
)


@pytest.mark.parametrize(
    "change", [a_parameter_of_int4, code_of_simplify_to_the_same_bytes, a_comment_in_simplify]
)
def test_change_fits_the_code(tmp_path: Path, change: Change) -> None:
    """What the long test below replaces is there to be replaced."""
    change(Installation(tmp_path))


@pytest.mark.deployment
@pytest.mark.timeout(3600)
def test_exactly_what_is_invalid_runs(tmp_path: Path, tried: list[str]) -> None:
    """One change after the other on one store; plan says before what the run says after."""
    installation = Installation(tmp_path)
    for model in _BOTH:
        installation.run(model)
    for change, models, stages, reason in _CASES:
        change(installation)
        for model in _BOTH:
            said = f"{change.__name__}, {model}"
            planned, ran = installation.planned(model), installation.run(model)
            assert set(ran) == (stages if model in models else set()), said
            assert planned.keys() >= ran.keys(), said
            if ran:
                first = next(iter(ran))
                assert ran[first].startswith(reason) and planned[first] == ran[first], said
    tried.append(
        f"{len(_CASES)} changes over two models, each with exactly the stages and partitions that it makes invalid: "
        + ", ".join(change.__name__.replace("_", " ") for change, *_ in _CASES)
    )
