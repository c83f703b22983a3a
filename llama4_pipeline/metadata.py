"""The keys under which a graph, or a GGUF file, says what its nodes do not: how it was made and what it serves."""

from collections.abc import Mapping

from llama4_pipeline.errors import InputError

MOST_TOKENS = 2**31 - 1  # GroupQueryAttention counts in 32 bits

FORM_KEY = "llama4.form"  # "portable" or "fused"
MAX_CONTEXT_KEY = "llama4.max_context"  # tokens of prompt and answer together
CHUNK_SIZE_KEY = "llama4.chunk_size"  # of layers whose cache holds one chunk
ANY_WIDTH_KEY = "llama4.any_width"  # there where a mask may be wider than the context by padding on the left
GGUF_CONFIG_KEY = "llama4_pipeline.config"  # the checkpoint's text configuration, in files of this package


def tokens_in(metadata: Mapping[str, str], key: str) -> int | None:
    """A number of tokens that a graph says; None where it says none.

    Raises:
        InputError: what stands there is no such number.
    """
    value = metadata.get(key)
    if value is None:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= MOST_TOKENS:
        raise InputError(f"{key} of the graph is {value!r}, expected a number of tokens; export it again")
    return int(value)


def exported_context(metadata: Mapping[str, str]) -> int:
    """The most tokens, prompt and answer together, that a graph of this pipeline was exported for.

    Raises:
        InputError: it does not say, or says no number of tokens.
    """
    tokens = tokens_in(metadata, MAX_CONTEXT_KEY)
    if tokens is None:
        raise InputError(f"the graph does not say {MAX_CONTEXT_KEY}; export it again")
    return tokens
