"""The key-value cache of an ONNX graph, bound through IO binding so that no token is copied through Python.

A fused graph writes into one buffer per layer that is bound as past and as present; a portable graph returns new
tensors that become the next call's past by rebinding.
"""

import mmap
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.out_of_memory import is_out_of_memory
from llama4_pipeline.units import format_bytes

_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class CacheTensor:
    """One cached tensor: [batch, kv_heads, tokens, head_dim].

    Attributes:
        past: its name as an input of the graph.
        present: its name as an output.
        kv_heads: second axis.
        head_dim: last axis.
        limit: most tokens that a row ever holds: the context, or a chunk.
        dtype: of the elements.
    """

    past: str
    present: str
    kv_heads: int
    head_dim: int
    limit: int
    dtype: np.dtype

    def shape(self, batch: int, capacity: int) -> tuple[int, int, int, int]:
        """Of its buffer, where rows are to hold `capacity` tokens."""
        return batch, self.kv_heads, min(capacity, self.limit), self.head_dim

    def nbytes(self, batch: int, capacity: int) -> int:
        """Of its buffer."""
        return int(np.prod(self.shape(batch, capacity))) * self.dtype.itemsize


class KeyValueCache(Protocol):
    """What `OrtDecoder` needs of a cache."""

    def reserve(self, batch: int, tokens: int) -> int:
        """Makes room for `tokens` tokens in each of `batch` rows; keeps what is cached.

        Returns:
            The slots that a row has, in the layer that has most.

        Raises:
            InputError: there is no memory for it; then the cache is empty.
        """

    def bind(self, binding: ort.IOBinding, row: int | None) -> None:
        """Binds past and present for the next run: of the whole batch, or of one row."""

    def collect(self, binding: ort.IOBinding) -> None:
        """Takes over what the run returned; the cached tensors are the last outputs of the binding."""

    def clear(self) -> None:
        """Empties the cache."""

    def nbytes(self) -> int:
        """Bytes allocated now."""


class SharedBuffers:
    """One contiguous buffer per tensor, past and present at once: GroupQueryAttention appends in place.

    The buffer doubles when it is full, up to the tensor's limit, so a token is moved at most once on average; one
    tensor after the other, so that only one stands in memory twice. Rows of the batch are contiguous, so a row can be
    bound by itself without a copy. A buffer limited to a chunk is overwritten from its start by the next chunk.

    Attributes:
        capacity: tokens that a row has room for, where the context does not end before.
        moves: counts up when buffers are made anew elsewhere.
    """

    def __init__(self, tensors: list[CacheTensor], device: str) -> None:
        self._tensors = tensors
        self._device = device
        self._buffers: list[Any] = []
        self._batch = 0
        self.capacity = 0
        self.moves = 0
        self._bound: tuple[ort.IOBinding, int, int, int | None] | None = None
        self._most_slots = max(tensor.limit for tensor in tensors)

    def reserve(self, batch: int, tokens: int) -> int:
        if batch != self._batch or tokens > self.capacity:
            self._grow(batch, tokens)
        return min(self.capacity, self._most_slots)

    def _grow(self, batch: int, tokens: int) -> None:
        kept = self.capacity if batch == self._batch else 0
        capacity = max(tokens, 2 * kept, _FIRST_CAPACITY)
        if not kept:
            self._buffers = [None] * len(self._tensors)
        self._bound = None
        self.moves += 1
        for index, tensor in enumerate(self._tensors):
            if kept and tensor.shape(batch, capacity) == tensor.shape(batch, kept):
                continue
            try:
                buffer = _zeros(tensor.shape(batch, capacity), tensor.dtype)
                if kept:
                    buffer[:, :, :kept] = self._buffers[index].numpy()
                self._buffers[index] = ort.OrtValue.ortvalue_from_numpy(buffer, self._device)
            except BaseException as error:  # an interrupt too finds some buffers grown and some not
                self._buffers, self._batch, self.capacity = [], 0, 0
                if not isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                wanted = sum(each.nbytes(batch, capacity) for each in self._tensors)
                raise InputError(
                    f"no memory for a KV cache of {format_bytes(wanted)}, {batch:,} rows of {capacity:,} tokens: "
                    "ask for fewer"
                ) from error
        self._batch, self.capacity = batch, capacity

    def bind(self, binding: ort.IOBinding, row: int | None) -> None:
        row = None if self._batch == 1 else row
        wanted = (binding, self._batch, self.capacity, row)
        if wanted == self._bound:
            return
        for tensor, buffer in zip(self._tensors, self._buffers, strict=True):
            shape, address = tensor.shape(self._batch, self.capacity), buffer.data_ptr()
            if row is not None:
                shape = tensor.shape(1, self.capacity)
                address += row * tensor.nbytes(1, self.capacity)
            binding.bind_input(tensor.past, self._device, 0, tensor.dtype, shape, address)
            binding.bind_output(tensor.present, self._device, 0, tensor.dtype, shape, address)
        self._bound = wanted

    def collect(self, binding: ort.IOBinding) -> None:
        """Nothing to take: the run wrote into the buffers."""

    def clear(self) -> None:
        """Nothing to erase: what lies beyond the mask is never read."""

    def nbytes(self) -> int:
        return sum(tensor.nbytes(self._batch, self.capacity) for tensor in self._tensors)


class ReboundTensors:
    """Each run returns the grown tensors; they are bound as the next run's past where they lie."""

    def __init__(self, tensors: list[CacheTensor], device: str) -> None:
        self._tensors = tensors
        self._device = device
        self._values: list[Any] = []

    def reserve(self, batch: int, tokens: int) -> int:
        if not self._values:
            self._values = [
                ort.OrtValue.ortvalue_from_numpy(
                    np.zeros((batch, tensor.kv_heads, 0, tensor.head_dim), dtype=tensor.dtype), self._device
                )
                for tensor in self._tensors
            ]
        return tokens

    def bind(self, binding: ort.IOBinding, row: int | None) -> None:
        if row is not None:
            raise ValueError("a portable graph takes the whole batch")
        for tensor, value in zip(self._tensors, self._values, strict=True):
            binding.bind_ortvalue_input(tensor.past, value)
            binding.bind_output(tensor.present, self._device)

    def collect(self, binding: ort.IOBinding) -> None:
        self._values = binding.get_outputs()[-len(self._tensors) :]

    def clear(self) -> None:
        self._values = []

    def nbytes(self) -> int:
        return sum(value.tensor_size_in_bytes() for value in self._values)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros in pages of their own: those that are never written take no memory, and all go back when it is dropped."""
    pages = mmap.mmap(-1, int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(pages, dtype).reshape(shape)
