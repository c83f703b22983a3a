"""What the runs of a graph read."""

import ctypes
from typing import Any

import numpy as np

from llama4_pipeline.runtime.step_buffers import StepBuffers


class DeviceBinding:
    """Takes a copy of an input when it is bound, as ONNX Runtime does where the graph runs on a GPU."""

    def __init__(self) -> None:
        self.inputs: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        held = (ctypes.c_int64 * int(np.prod(shape))).from_address(address)
        self.inputs[name] = np.array(held, dtype=dtype).reshape(shape)


def test_a_gpu_sees_each_value_of_an_input_that_keeps_its_shape() -> None:
    binding = DeviceBinding()
    buffers = StepBuffers(binding, np.dtype(np.float32), "cuda")
    for token in (3, 5):
        buffers.feed("input_ids", np.array([[token]]))
        buffers.feed("logits_to_keep", np.array(1))
        assert binding.inputs["input_ids"].tolist() == [[token]]
        assert binding.inputs["logits_to_keep"] == 1
