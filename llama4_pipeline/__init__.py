"""Llama 4 from PyTorch to production ONNX: exported, validated, optimised, quantised, measured."""
