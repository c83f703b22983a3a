"""ONNX graph to ONNX graph: export, simplify, fuse, quantise, validate."""
