from typing import Any

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime import kv_cache
from llama4_pipeline.runtime.kv_cache import CacheTensor, SharedBuffers


def _tensors() -> list[CacheTensor]:
    return [CacheTensor(f"past.{n}", f"present.{n}", 2, 16, 4096, np.dtype(np.float32)) for n in range(2)]


def test_a_cache_whose_growth_was_interrupted_grows_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SharedBuffers(_tensors(), "cpu")
    cache.reserve(1, 16)
    zeros, made = kv_cache._zeros, []

    def interrupted(*shape_and_dtype: Any) -> np.ndarray:
        made.append(shape_and_dtype)
        if len(made) == 2:
            raise KeyboardInterrupt
        return zeros(*shape_and_dtype)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kv_cache, "_zeros", interrupted)
        cache.reserve(1, 300)
    assert cache.nbytes() == 0
    assert cache.reserve(1, 600) == 600


def test_a_cache_that_no_memory_holds_is_refused_and_a_smaller_one_made():
    cache = SharedBuffers(_tensors(), "cpu")
    cache.reserve(1, 16)
    with pytest.raises(InputError, match=r"no memory for a KV cache of 65,536 GB, 1,000,000,000 rows"):
        cache.reserve(1_000_000_000, 16)
    assert cache.nbytes() == 0
    assert cache.reserve(2, 16) == 256
    assert cache.nbytes() == 2 * 2 * 2 * 16 * 256 * 4
