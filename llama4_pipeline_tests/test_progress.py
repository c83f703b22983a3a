"""Progress as a person sees it: lines with rate and time left in a log, a bar in a terminal."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from llama4_pipeline import progress
from llama4_pipeline.progress import Progress

_PROGRAM = """
from llama4_pipeline.progress import Progress
with Progress("quantize", total=4, unit="tensors") as progress:
    for name in "abcd":
        progress.advance(note=name)
"""


@pytest.mark.parametrize(
    ("total", "seconds", "says"),
    [
        (
            5000,
            [0, 4, 12, 16, 24, 40],
            [
                "quantize: 2,000/5,000 tensors, 166.7/s, 18 s left, b",
                "quantize: 4,000/5,000 tensors, 166.7/s, 6.0 s left, d",
                "quantize: 4,000/5,000 tensors, 100.0/s, 10 s left",
            ],
        ),
        (
            6000,
            [0, 1, 2, 3, 60_000, 60_000],
            [
                "quantize: 4,000/6,000 tensors, 15 s each, 8.3 h left, d",
                "quantize: 4,000/6,000 tensors, 15 s each, 8.3 h left",
            ],
        ),
    ],
)
def test_the_log_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    total: int,
    seconds: list[int],
    says: list[str],
) -> None:
    """A line every ten seconds, and one at the end."""
    clock = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO), Progress("quantize", total=total, unit="tensors") as bar:
        for note in ("a", "b", "c", "d"):
            bar.advance(1000, note)
    assert caplog.messages == says


def test_nothing_to_do_is_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("write weights", total=0, unit="MB"):
        pass
    assert caplog.messages == ["write weights: 0/0 MB, 0 s"]


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", _PROGRAM], stderr=theirs, check=True)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    drawn = [line.split("\x1b")[0] for line in shown.strip().split("\r") if line]
    assert [line[:32] for line in drawn] == [f"[{'#' * n}{'.' * (30 - n)}]" for n in (7, 15, 22, 30)]
    assert "4/4 tensors" in drawn[-1] and ", 0 s left, d" in drawn[-1]
