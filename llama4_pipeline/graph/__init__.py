"""ONNX graph to ONNX graph: export, simplify, fuse, quantise, validate."""

MICROSOFT = "com.microsoft"  # domain of the operators that ONNX Runtime adds
