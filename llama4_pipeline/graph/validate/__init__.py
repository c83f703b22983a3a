"""Validation of ONNX graphs against PyTorch, layer by layer."""

from llama4_pipeline.graph.validate.fitting import validate_within_memory
from llama4_pipeline.graph.validate.report import ValidationReport
from llama4_pipeline.graph.validate.validation import validate_graph

__all__ = ["ValidationReport", "validate_graph", "validate_within_memory"]
