"""What a run of an ONNX graph reads, in memory that stays bound from step to step, and the logits it writes.

Binding anew costs Python tens of microseconds a tensor; in a decode loop only the mask changes its shape. A GPU has its
own memory, into which ONNX Runtime copies an input when it is bound, so there every input is bound for every run.
"""

from typing import Any

import numpy as np


class StepBuffers:
    """Holds the memory of one binding's integer inputs, and gives its logits theirs.

    Args:
        binding: an `onnxruntime.IOBinding`; inputs and logits lie on the CPU, wherever the graph runs.
        logits_dtype: of the graph's logits.
        device: "cpu" or "cuda", where the graph runs.
    """

    def __init__(self, binding: Any, logits_dtype: np.dtype, device: str) -> None:
        self._binding = binding
        self._reads_in_place = device == "cpu"
        self._fed: dict[str, np.ndarray] = {}
        self._logits_dtype = logits_dtype

    def feed(self, name: str, values: np.ndarray) -> None:
        """Copies an input of the graph into its buffer, as int64."""
        held = self._fed.get(name)
        if self._reads_in_place and held is not None and held.shape == values.shape:
            held[...] = values
            return
        new = self._fed[name] = np.array(values, dtype=np.int64, order="C")
        # bind_cpu_input takes a third of the time and knows no input with a default
        if self._reads_in_place and held is not None:
            self._binding.bind_cpu_input(name, new)
        else:
            self._binding.bind_input(name, "cpu", 0, np.int64, new.shape, new.ctypes.data)

    def logits(self, shape: tuple[int, int, int]) -> np.ndarray:
        """New memory [B, kept, vocab] that the next run writes; the caller keeps it."""
        logits = np.empty(shape, dtype=self._logits_dtype)
        self._binding.bind_output("logits", "cpu", 0, logits.dtype, shape, logits.ctypes.data)
        return logits
