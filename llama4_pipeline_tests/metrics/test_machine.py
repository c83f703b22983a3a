"""The description of the machine."""

import json
import subprocess

from llama4_pipeline.metrics import machine
from llama4_pipeline.metrics.machine import (
    Machine,
    describe_machine,
    library_versions,
    measure_read_bandwidth,
)


def test_describes_this_machine():
    machine = describe_machine(read_bandwidth=1e9)
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 1 << 28
    assert {"torch", "transformers", "numpy"} <= library_versions().keys()
    assert Machine.model_validate(json.loads(machine.model_dump_json())) == machine


def test_identity_leaves_out_what_was_measured():
    assert describe_machine(1e9).identity() == describe_machine(2e9).identity()
    assert "libraries" in describe_machine().identity()


def test_a_driver_that_does_not_answer_costs_its_name_alone(monkeypatch, caplog):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("subprocess.run", hang)
    machine._gpu_name.cache_clear()
    assert describe_machine().gpu is None
    assert "the GPU goes without a name" in caplog.text
    machine._gpu_name.cache_clear()


def test_read_bandwidth_is_of_a_possible_size():
    assert 5e8 < measure_read_bandwidth(threads=1) < 5e12
