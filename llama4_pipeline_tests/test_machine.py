"""The description of the machine."""

import json
import subprocess

from llama4_pipeline import machine
from llama4_pipeline.machine import Machine, describe_machine, library_versions


def test_describes_this_machine():
    machine = describe_machine(read_bandwidth=1e9)
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 1 << 28
    assert {"torch", "transformers", "numpy"} <= library_versions().keys()
    assert Machine.model_validate(json.loads(machine.model_dump_json())) == machine


def test_a_driver_that_does_not_answer_costs_its_name_alone(monkeypatch, caplog):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("subprocess.run", hang)
    machine._gpu_name.cache_clear()
    assert describe_machine().gpu is None
    assert "the GPU goes without a name" in caplog.text
    machine._gpu_name.cache_clear()
