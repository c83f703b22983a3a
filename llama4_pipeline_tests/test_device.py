"""Which device the pipeline computes on."""

import pytest

from llama4_pipeline import device
from llama4_pipeline.device import DEVICE_VARIABLE, find_device
from llama4_pipeline.errors import InputError


def test_a_machine_without_a_gpu_is_for_the_cpu_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: None)
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert find_device().name == "cpu"
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert find_device() == device.Device("cuda", f"{DEVICE_VARIABLE} asks for it")


def test_a_gpu_is_left_alone_where_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: "a GPU")
    monkeypatch.setattr(device, "missing_cuda_build", lambda: None)
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert (find_device().name, find_device().gpu) == ("cuda", "a GPU")
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    assert find_device().name == "cpu"


def test_what_is_asked_for_is_not_taken_back_for_want_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: "a GPU")
    monkeypatch.setattr(device, "missing_cuda_build", lambda: "onnxruntime-gpu is not installed")
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert find_device().name == "cpu"
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    assert (find_device().name, find_device().gpu) == ("cuda", "a GPU")


def test_a_device_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "tpu")
    with pytest.raises(
        InputError, match="LLAMA4_PIPELINE_DEVICE='tpu' names no device: cpu and cuda are there"
    ):
        find_device()
