import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.kv_cache import CacheTensor, SharedBuffers


def test_a_cache_that_no_memory_holds_is_refused_and_a_smaller_one_made():
    tensors = [CacheTensor(f"past.{n}", f"present.{n}", 2, 16, 4096, np.dtype(np.float32)) for n in range(2)]
    cache = SharedBuffers(tensors, "cpu")
    cache.reserve(1, 16)
    with pytest.raises(InputError, match=r"no memory for a KV cache of 65,536 GB, 1,000,000,000 rows"):
        cache.reserve(1_000_000_000, 16)
    assert cache.nbytes() == 0
    assert cache.reserve(2, 16) == 256
    assert cache.nbytes() == 2 * 2 * 2 * 16 * 256 * 4
