"""A graph, or a part of one, in ONNX Runtime on the CPU; its weights are found in the files of a directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime


def open_session(
    model: ir.Model | onnx.ModelProto, directory: Path, threads: int = 0
) -> onnxruntime.InferenceSession:
    """Opens a model whose weights lie in the files of a graph directory; nothing is written.

    Args:
        model: the graph, its large weights external.
        directory: where their files lie.
        threads: of ONNX Runtime; 0 is one per core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(directory.resolve())
    )
    proto = ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def cut_out(graph: ir.Graph, entering: Mapping[str, np.dtype], outputs: Sequence[str]) -> ir.Graph:
    """The part of a graph that leads from the entering values and the graph's inputs to some of its values.

    Args:
        graph: stays as it is.
        entering: names and dtypes of inner values that become inputs.
        outputs: names.
    """
    names = [value.name for value in graph.inputs if value.name is not None]
    part = ir.convenience.extract(graph, [*names, *entering], list(outputs))
    for value in list(part.inputs):
        if not value.uses():
            part.inputs.remove(value)
        elif value.name is not None and value.name in entering:
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(entering[value.name])), None
    return part
