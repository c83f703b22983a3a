"""The bounds of `make large` name what misses them, and each row keeps its own day and machine."""

import mmap
from dataclasses import replace
from pathlib import Path

import pytest

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline_tests.large.cases import CASES, Case, growth_faults
from llama4_pipeline_tests.large.figures import Figures, LeftOut
from llama4_pipeline_tests.large.page import write_page
from llama4_pipeline_tests.large.run import run_case

BY_NAME = {case.name: case for case in CASES}
STREAM, SHARDS = BY_NAME["Scout, 4 layers, INT4"], BY_NAME["Scout, 4 layers, shards on disk, INT4"]
GOOD = Figures(
    parameters=10_000_000_000,
    input_bytes=20_000_000_000,
    output_bytes=6_000_000_000,
    seconds=99,
    cpu_seconds=80,
    peak_bytes=1 << 30,
    read_bytes=26_200_000_000,
    written_bytes=6_000_000_000,
    load=0.1,
    date="2026-11-23",
    machine="EPYC",
)


@pytest.mark.parametrize(
    ("case", "changes", "fault"),
    [
        (STREAM, {}, None),
        (SHARDS, {}, None),
        (STREAM, {"peak_bytes": 3 << 30}, "3,221,225,472 bytes at the peak, at most 2,650,800,128 allowed"),
        (STREAM, {"seconds": 101}, "99.0 M weights/s, at least 100 M wanted"),
        (
            STREAM,
            {"seconds": 125, "load": 2.25},
            "80.0 M weights/s, at least 100 M wanted; the machine was busy: 2.2 other runnable processes per core",
        ),
        (CASES[0], {"seconds": 121, "peak_bytes": 1}, "121 s, at most 120 s allowed"),
        (
            SHARDS,
            {"read_bytes": 46_000_000_000},
            "46,000,000,000 bytes read, at most 27,800,000,000 allowed",
        ),
        (
            SHARDS,
            {"written_bytes": 12_000_000_000},
            "12,000,000,000 bytes written, at most 6,300,000,000 allowed",
        ),
    ],
)
def test_what_misses_a_bound_is_named_with_the_figures(
    case: Case, changes: dict[str, float], fault: str | None
) -> None:
    found = case.faults(replace(GOOD, **changes))
    assert found == ([f"{case.name}: {fault}"] if fault else [])


@pytest.mark.parametrize(("cpu_seconds", "faults"), [(98, 0), (102, 2)])
def test_time_grows_with_the_weights(cpu_seconds: float, faults: int) -> None:
    measured = {
        "Scout, 1 layer, fused graph only": replace(GOOD, cpu_seconds=10),
        "Scout, 1 layer, INT4": replace(GOOD, parameters=4_000_000_000, cpu_seconds=34),
        STREAM.name: replace(GOOD, cpu_seconds=cpu_seconds),
        CASES[-1].name: replace(GOOD, cpu_seconds=cpu_seconds),
    }
    assert len(growth_faults(measured)) == faults
    assert growth_faults({STREAM.name: GOOD}) == []


def test_a_command_is_measured_and_what_it_wrote_is_gone(tmp_path: Path) -> None:
    tiny = replace(SHARDS, model="tiny", layers=2)
    figures = run_case(tiny, tmp_path)
    assert isinstance(figures, Figures)
    assert tiny.faults(figures) == []
    tensors = len(Architecture.from_config(tiny.config()).checkpoint_tensors())
    holes = (
        2 * tensors * mmap.PAGESIZE
    )  # codes and scales start on pages, and nobody writes what lies between
    assert figures.written_bytes + holes >= figures.output_bytes > figures.parameters / 2
    assert figures.read_bytes >= figures.input_bytes == 2 * figures.parameters
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_has_no_room_for_is_a_row_that_says_so(tmp_path: Path) -> None:
    all_layers = replace(CASES[-1], free_bytes=10**18)
    left_out = run_case(all_layers, tmp_path)
    assert isinstance(left_out, LeftOut)
    write_page(tmp_path / "page.md", [(all_layers, replace(left_out, free_bytes=42_000_000_000))])
    row = "| Scout, all 48 layers, INT4 | 108 B | left out: 1,000,000,000 GB of disk needed, 42.0 GB free |"
    assert row in (tmp_path / "page.md").read_text()


def test_each_row_keeps_its_day_and_machine_and_names_its_checkpoint(tmp_path: Path) -> None:
    newer = replace(GOOD, date="2026-11-25", machine="Xeon")
    write_page(tmp_path / "page.md", [(STREAM, GOOD), (SHARDS, newer)])
    text = (tmp_path / "page.md").read_text()
    first, second = (line for line in text.splitlines() if line.startswith("| Scout"))
    assert first.endswith("| 2026-11-23, EPYC |") and second.endswith("| 2026-11-25, Xeon |")
    assert "export --checkpoint scout --out GRAPH" in text
    assert "export --checkpoint scout-shards --out GRAPH" in text
