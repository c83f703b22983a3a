"""Work that cannot come to its end is refused with the figures."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_pipeline import preflight
from llama4_pipeline.errors import InputError
from llama4_pipeline.needs import Needs
from llama4_pipeline.preflight import require, room


def test_there_is_room_also_for_a_directory_that_is_not_yet_there(tmp_path: Path) -> None:
    there = room(tmp_path / "new" / "graph")
    assert there.memory_bytes > 0
    assert there.disk_bytes > 0
    require("a small stage", Needs(1, 1), tmp_path / "new" / "graph")


def test_short_memory_is_told_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this export needs 1,000,000 GB of memory, .* GB are free"):
        require("this export", Needs(10**15, 1), tmp_path)


def test_short_disk_is_told_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no space for this export in .*: 1,000,000 GB needed, .* free"):
        require("this export", Needs(1, 10**15), tmp_path)


def test_short_device_memory_is_told_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "device_free_bytes", lambda: 16 * 10**9)
    with pytest.raises(
        InputError, match=r"benchmarks of 7b needs 20.0 GB of device memory, 16.0 GB are free; end what else"
    ):
        require("benchmarks of 7b", Needs(1, 1, 20 * 10**9), tmp_path, on_gpu=True)


def test_what_lies_on_the_gpu_is_not_asked_of_main_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "device_free_bytes", lambda: 10**16)
    require("benchmarks of 7b", Needs(10**15, 1, 10**15), tmp_path, on_gpu=True)


def test_a_limit_on_the_process_counts(tmp_path: Path) -> None:
    limit = 1 << 30
    code = (
        "import resource; from pathlib import Path; from llama4_pipeline.preflight import room;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}));"
        "print(room(Path('.')).memory_bytes)"
    )
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != limit
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) < limit


@pytest.mark.parametrize("limited", ["job_7", "job_7/step_0/task_0"])
def test_a_limit_on_any_group_above_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: str
) -> None:
    """A scheduler limits a job, and what it starts runs in groups below."""
    (tmp_path / "job_7" / "step_0" / "task_0").mkdir(parents=True)
    (tmp_path / limited / "memory.max").write_text("1000000\n")
    (tmp_path / limited / "memory.current").write_text("1000\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/job_7/step_0/task_0\n")
    monkeypatch.setattr(preflight, "_CGROUPS", tmp_path)
    monkeypatch.setattr(preflight, "_OWN_CGROUPS", own)
    assert room(tmp_path).memory_bytes == 999_000


@pytest.mark.parametrize("inactive", ["inactive_file 500000", "inactive_file 0\ntotal_inactive_file 500000"])
def test_page_cache_that_gives_way_is_room(
    inactive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of the versions of Linux's control groups counts a group's children in its own figure."""
    group = tmp_path / "job_7"
    group.mkdir()
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text(f"anon 100000\nfile 800000\nactive_file 300000\n{inactive}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/job_7\n")
    monkeypatch.setattr(preflight, "_CGROUPS", tmp_path)
    monkeypatch.setattr(preflight, "_OWN_CGROUPS", own)
    assert room(tmp_path).memory_bytes == 600_000
