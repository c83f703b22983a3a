"""Memory that was not there, in whatever exception an engine tells of it."""

_NO_ROOM = ("Failed to allocate memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ONNX Runtime, PyTorch, or CUDA below them, found no room; they have no type of error in common."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM)
