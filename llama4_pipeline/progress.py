"""Progress of a long step: a bar in a terminal, log lines with rate and time left elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

from llama4_pipeline.units import format_seconds

_LOG_EVERY_SECONDS = 10.0
_BAR_WIDTH = 30
_kept: list[TextIO] = []
_logger = logging.getLogger(__name__)


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Lets bars reach the terminal though standard error leads elsewhere meanwhile, as Dagster has it in a step."""
    if not sys.stderr.isatty():
        yield
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal:
        _kept.append(terminal)
        try:
            yield
        finally:
            _kept.pop()


class Progress:
    """Counts units of work and tells how fast they go and when they will be done.

    Where standard error is a terminal, or was one at `terminal_kept`, it redraws one line there; elsewhere it logs a
    line every ten seconds and one at the end, so that the Dagster log shows that a long stage lives.

        with Progress("quantize", total=len(weights), unit="tensors") as progress:
            for weight in weights:
                ...
                progress.advance()
    """

    def __init__(self, task: str, total: int, unit: str = "steps") -> None:
        self._task, self._total, self._unit = task, total, unit
        self._terminal = sys.stderr if sys.stderr.isatty() else next(iter(_kept), None)
        self._done = 0

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        return self

    def advance(self, units: int = 1, note: str = "") -> None:
        """Adds finished units; `note` is shown behind the figures (a loss, a file name)."""
        self._done += units
        now = time.monotonic()
        if self._terminal:
            self._draw(self._terminal, now, note)
        elif now - self._last >= _LOG_EVERY_SECONDS:
            self._last = now
            _logger.info(self._line(now, note))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._terminal.write("\n")
            self._terminal.flush()
        elif kind is None:
            _logger.info(self._line(time.monotonic(), ""))

    def _line(self, now: float, note: str) -> str:
        elapsed = now - self._start
        line = f"{self._task}: {self._done:,}/{self._total:,} {self._unit}, {format_seconds(elapsed)}"
        if self._done and elapsed > 0:
            seconds_each = elapsed / self._done
            rate = (
                f"{1 / seconds_each:,.1f}/s" if seconds_each < 1 else f"{format_seconds(seconds_each)} each"
            )
            left = format_seconds(seconds_each * (self._total - self._done))
            line = f"{self._task}: {self._done:,}/{self._total:,} {self._unit}, {rate}, {left} left"
        return f"{line}, {note}" if note else line

    def _draw(self, terminal: TextIO, now: float, note: str) -> None:
        filled = _BAR_WIDTH * self._done // max(self._total, 1)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        terminal.write(f"\r[{bar}] {self._line(now, note)}\x1b[K")
        terminal.flush()
