"""Exports Scout's real dimensions through the command line under a limit of memory; writes docs/large-models.md."""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from llama4_pipeline_tests.large.cases import CASES, growth_faults
from llama4_pipeline_tests.large.figures import Figures, LeftOut
from llama4_pipeline_tests.large.page import write_page
from llama4_pipeline_tests.large.run import run_case

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
    measured = _measured_before(asked.page) if asked.only else {}
    anew: dict[str, Figures] = {}
    broken = []
    for case in CASES:
        if asked.only in case.name:
            _logger.info("%s: %s", case.name, " ".join(case.command(case.checkpoint, "GRAPH", "FLOAT")))
            measured[case.name] = outcome = run_case(case, asked.scratch)
            if isinstance(outcome, Figures):
                anew[case.name] = outcome
                broken += case.faults(outcome)
            write_page(asked.page, [(each, measured[each.name]) for each in CASES if each.name in measured])
            _record(asked.page).write_text(
                json.dumps({name: asdict(row) for name, row in measured.items()}, indent=1)
            )
    broken += growth_faults(anew)
    for fault in broken:
        _logger.error("%s", fault)
    return 1 if broken else 0


def _measured_before(page: Path) -> dict[str, Figures | LeftOut]:
    """The rows of the page that are not measured anew."""
    if not _record(page).is_file():
        return {}
    rows = json.loads(_record(page).read_text())
    return {name: LeftOut(**row) if "free_bytes" in row else Figures(**row) for name, row in rows.items()}


def _record(page: Path) -> Path:
    return page.with_suffix(".json")


if __name__ == "__main__":
    sys.exit(main())
