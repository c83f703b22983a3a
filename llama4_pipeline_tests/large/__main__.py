"""Exports Scout's real dimensions through the command line under a limit of memory; writes docs/large-models.md."""

import argparse
import logging
import sys
from pathlib import Path

from llama4_pipeline_tests.large.cases import CASES, Case
from llama4_pipeline_tests.large.page import write_page
from llama4_pipeline_tests.large.run import Figures, run_case

PAGE = Path(__file__).parents[2] / "docs" / "large-models.md"
_logger = logging.getLogger("large")


def main() -> int:
    """Runs the cases one after the other; returns 1 if one broke its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scratch", type=Path, default=Path("/var/tmp"), help="where outputs stand for a while"
    )
    parser.add_argument("--only", default="", help="run only the cases whose name contains this")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    measured: list[tuple[Case, Figures]] = []
    for case in CASES:
        if asked.only in case.name:
            _logger.info("%s: %s", case.name, case.command("CHECKPOINT", "OUT"))
            measured.append((case, run_case(case, asked.scratch)))
            _logger.info("%s", measured[-1][1])
            write_page(asked.page, measured)
    broken = [fault for case, figures in measured for fault in case.faults(figures)]
    for fault in broken:
        _logger.error("%s", fault)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
