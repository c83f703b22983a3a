"""Decode steps in one shape and one memory: what CUDA needs to replay a step as a graph, one launch for all kernels.

The mask is as wide as the cache has slots, padded on the left: a fused graph finds the real tokens of a row wherever
its padding is (`graph/fuse/rows.py`).

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from typing import Any

import numpy as np
import onnxruntime as ort

from llama4_pipeline.runtime.decoder import position_ids
from llama4_pipeline.runtime.kv_cache import SharedBuffers

_GRAPH_ID = "gpu_graph_id"


def not_captured() -> ort.RunOptions:
    """Of runs whose shapes change, in a session that captures."""
    return _run_options(-1)


class FixedSteps:
    """Steps of all rows of a batch, as long as the cache stays where it is.

    ONNX Runtime captures the first and keeps what it captured until the session is closed.

    Args:
        session: of a fused graph that takes a mask of any width.
        cache: holds the tokens so far.
        batch: rows.
        width: of the mask: the most tokens that a row of the cache holds.
        vocab_size: of the logits.
        logits_dtype: of the graph's logits.
        device: "cpu", where nothing is captured, or "cuda".
    """

    def __init__(
        self,
        session: Any,
        cache: SharedBuffers,
        *,
        batch: int,
        width: int,
        vocab_size: int,
        logits_dtype: np.dtype,
        device: str,
    ) -> None:
        self._session, self._binding, self._device = session, session.io_binding(), device
        self._cache, self._moves = cache, cache.moves
        self._options = _run_options(self._moves)
        self._mask = np.zeros((batch, width), dtype=np.int64)
        shapes = {"input_ids": (batch, 1), "position_ids": (batch, 1), "attention_mask": (batch, width)}
        self._inputs = {
            value.name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shapes[value.name], np.int64), device)
            for value in session.get_inputs()
            if value.name in shapes
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._kept = np.array(1)
        self._binding.bind_input("logits_to_keep", "cpu", 0, np.int64, [], self._kept.ctypes.data)
        self._logits = ort.OrtValue.ortvalue_from_shape_and_type((batch, 1, vocab_size), logits_dtype, device)
        self._binding.bind_ortvalue_output("logits", self._logits)
        cache.bind(self._binding, None)

    @property
    def are_stale(self) -> bool:
        """Whether the cache has moved since."""
        return self._cache.moves != self._moves

    def run(self, input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Appends a token to each row.

        Args:
            input_ids: int64 [B, 1].
            mask: int64 [B, T] over cached and new tokens, no wider than the cache.

        Returns:
            float32 [B, 1, vocab].
        """
        padding = self._mask.shape[1] - mask.shape[1]
        self._mask[:, :padding], self._mask[:, padding:] = 0, mask
        feeds = {
            "input_ids": input_ids,
            "position_ids": position_ids(mask, 1),
            "attention_mask": self._mask,
        }
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name], dtype=np.int64))
        self._session.run_with_iobinding(self._binding, self._options)
        on_cpu = self._device == "cpu"  # where this is the very memory that the next step writes
        return self._logits.numpy().astype(np.float32, copy=on_cpu)


def _run_options(graph_id: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(graph_id))
    return options
