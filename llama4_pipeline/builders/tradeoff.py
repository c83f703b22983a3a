"""The methods of quantization beside each other."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.builders.files import JUDGED_ON, METHODS_COMPARED
from llama4_pipeline.builders.quantize import build as quantize


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Quantizes in every way that the model's plan compares, and judges each graph on held-out text and tasks.

    Args:
        inputs: `checkpoint`, `datasets` and `optimized_graph`, where there is something to compare.
        parameters: `compare`, pairs such as "int4 gptq".
        out: The directory to fill.

    Returns:
        Size, loss and seconds to make by precision and method; nothing where nothing is to be compared. Times per
        token stay in the file: other stages run beside this one, and any machine's artifact is taken.
    """
    from llama4_pipeline.metrics.method_result import write_results
    from llama4_pipeline.metrics.tradeoff import compare_methods

    results, seconds = [], {}

    def make(precision: str, method: str, directory: Path) -> None:
        start = time.monotonic()
        quantize(inputs, {"precision": precision, "method": method, "device": "cpu"}, directory)
        seconds[f"{precision} {method}"] = time.monotonic() - start

    if parameters["compare"]:
        data = {name: inputs["datasets"] / file for name, file in JUDGED_ON.items()}
        with tempfile.TemporaryDirectory(dir=out, prefix=".scratch-") as scratch:
            results = compare_methods(
                inputs["optimized_graph"],
                inputs["checkpoint"],
                data,
                [(precision, method) for precision, method in map(str.split, parameters["compare"])],
                make,
                Path(scratch),
            )
    write_results(results, out / METHODS_COMPARED)
    return {
        "methods": {
            row.name: {
                "bytes": row.model_bytes,
                "perplexity_increase": row.loss,
                "seconds": seconds.get(row.name),
            }
            for row in results
        }
    }
