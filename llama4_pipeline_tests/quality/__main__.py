"""Measures every method of quantization on trained models, holds them against their bounds, writes docs/quality.md."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from llama4_pipeline_tests.quality.bounds import faults
from llama4_pipeline_tests.quality.measure import MODELS, measure_model
from llama4_pipeline_tests.quality.page import table, write_page
from llama4_pipeline_tests.quality.sizes import measure_sizes, size_faults

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
_logger = logging.getLogger("quality")


def main() -> int:
    """Returns 1 if a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, action="append", help="only this one; writes no page")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("llama4_pipeline", "llama4_pipeline_tests", "quality"):
        logging.getLogger(name).setLevel(logging.INFO)
    measured = {}
    for model in asked.model or MODELS:
        measured[model] = measure_model(model)
        print(f"{model}\n\n{table(measured[model])}\n", flush=True)
    missed = [f"{model} {fault}" for model, each in measured.items() for fault in faults(each.rows)]
    if not asked.model:
        with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
            sizes = measure_sizes(Path(scratch))
        write_page(asked.page, measured, sizes)
        missed += size_faults(sizes)
    for fault in missed:
        _logger.error("%s", fault)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
