"""Property tests: drawn configurations and uses of Llama 4, every form of the graph against transformers."""
