"""The executor is chosen by one variable."""

import sys

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.executors import EXECUTOR_VARIABLE, chosen_executor


def test_steps_run_on_this_machine_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXECUTOR_VARIABLE, raising=False)
    assert chosen_executor().name == "multiprocess"


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "slurm")
    with pytest.raises(InputError, match="LLAMA4_PIPELINE_EXECUTOR is 'slurm': let it be local or ray"):
        chosen_executor()


def test_ray_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "ray")
    monkeypatch.setitem(sys.modules, "dagster_ray.core.executor", None)
    monkeypatch.delitem(sys.modules, "llama4_pipeline.orchestration.ray_executor", raising=False)
    with pytest.raises(InputError, match=r"pip install 'llama4-pipeline\[ray\]'"):
        chosen_executor()
