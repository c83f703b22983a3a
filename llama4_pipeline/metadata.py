"""The keys under which a graph, or a GGUF file, says what its nodes do not: how it was made and what it serves."""

FORM_KEY = "llama4.form"  # "portable" or "fused"
MAX_CONTEXT_KEY = "llama4.max_context"  # tokens of prompt and answer together
CHUNK_SIZE_KEY = "llama4.chunk_size"  # of layers whose cache holds one chunk
ANY_WIDTH_KEY = "llama4.any_width"  # there where a mask may be wider than the context by padding on the left
GGUF_CONFIG_KEY = "llama4_pipeline.config"  # the checkpoint's text configuration, in files of this package
