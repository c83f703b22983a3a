"""Llama 4 from PyTorch to production ONNX: exported, validated, optimised, quantised, measured."""

import os

# How long PyTorch's OpenMP threads spin at a barrier before they sleep (libgomp reads it once, when torch is imported).
# Its own default waits out whole time slices as soon as another process uses a core: training the embedded model on two
# cores then made 0.1 steps a second instead of 1.7. With this it makes 0.7, and 1.7 still on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# ONNX Runtime's tiled attention on the CPU, asked about when a session opens, takes 1.8 times as long as its plain
# kernel for a step after 2,048 tokens, and 1.1 to 1.2 times for 256 tokens of a prompt (docs/performance.md). It saves
# memory, which the decoder does by shorter parts.
os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
