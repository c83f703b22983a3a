"""ONNX Runtime's real CUDA provider on a machine without a GPU, over libraries that stand in for CUDA's."""
