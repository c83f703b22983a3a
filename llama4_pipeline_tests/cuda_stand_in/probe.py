"""A graph on the stand-ins: `python -m llama4_pipeline_tests.cuda_stand_in.probe placement|steps GRAPH`, as JSON."""

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from llama4_pipeline.runtime.ort import OrtDecoder, open_session

STEPS = 5


def placement(graph: Path) -> dict[str, int]:
    """Opens the graph, reads a prompt and takes a step; returns the operators of the nodes that are not on CUDA."""
    parts = open_session(graph, device="cuda").get_provider_graph_assignment_info()
    elsewhere = (part for part in parts if part.ep_name != "CUDAExecutionProvider")
    decoder = OrtDecoder(graph, device="cuda")
    decoder.forward(np.array([[3, 4, 5, 6]]))
    decoder.forward(np.array([[7]]))
    return dict(Counter(node.op_type for part in elsewhere for node in part.get_nodes()))


def steps(graph: Path) -> dict[str, list[int]]:
    """Decodes two texts with a CUDA graph, then a batch of two; returns what the stand-ins counted after each."""
    decoder = OrtDecoder(graph, device="cuda", fixed_steps=True)
    runtime = ctypes.CDLL("libcudart.so.13")
    counts: dict[str, list[int]] = {"graphs_launched": [], "unfit_calls_captured": []}
    for rows in (1, 1, 2):
        decoder.reset()
        decoder.forward(np.full((rows, 4), 3))
        for _ in range(STEPS):
            decoder.forward(np.full((rows, 1), 7))
        for name, values in counts.items():
            values.append(ctypes.c_int.in_dll(runtime, f"stand_in_{name}").value)
    return counts


if __name__ == "__main__":
    print(json.dumps({"placement": placement, "steps": steps}[sys.argv[1]](Path(sys.argv[2]))))
