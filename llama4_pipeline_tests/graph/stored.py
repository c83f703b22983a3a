"""Reads weights back from graph directories; onnx_ir itself refuses files with several hard links."""

import numpy as np
import onnx_ir as ir


def stored_array(value: ir.Value) -> np.ndarray:
    """The contents of an initializer, in memory or in a data file."""
    tensor = value.const_value
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    array = np.fromfile(tensor.path, tensor.dtype.numpy(), tensor.size, offset=tensor.offset or 0)
    return array.reshape(tensor.shape.numpy())
