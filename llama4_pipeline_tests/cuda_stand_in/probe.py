"""A graph on the stand-ins: `python -m llama4_pipeline_tests.cuda_stand_in.probe GRAPH` prints what is not on CUDA."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from llama4_pipeline.runtime.ort import OrtDecoder, open_session


def probe(graph: Path) -> dict[str, int]:
    """Opens the graph, reads a prompt and takes a step; returns the operators of the nodes that are not on CUDA."""
    parts = open_session(graph, device="cuda").get_provider_graph_assignment_info()
    elsewhere = (part for part in parts if part.ep_name != "CUDAExecutionProvider")
    decoder = OrtDecoder(graph, device="cuda")
    decoder.forward(np.array([[3, 4, 5, 6]]))
    decoder.forward(np.array([[7]]))
    return dict(Counter(node.op_type for part in elsewhere for node in part.get_nodes()))


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]))))
