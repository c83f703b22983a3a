"""Figures as people read them: three significant digits, decimal units."""

import math

_BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_number(value: float) -> str:
    """Three significant digits, never in exponential form above a millionth: 1234.5 -> 1,234, 0.01234 -> 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if abs(value) < 1e-6:
        return f"{value:.0e}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def format_bytes(size: float) -> str:
    """Bytes in the largest decimal unit that gives at least one: 3500000 -> 3.50 MB."""
    for unit, name in _BYTE_UNITS:
        if size >= unit:
            return f"{format_number(size / unit)} {name}"
    return f"{size:.0f} B"


def format_seconds(seconds: float) -> str:
    """A time in the unit that a person thinks in: 8.25 -> 8.2 s, 90 -> 90 s, 4000 -> 67 min, 30000 -> 8.3 h."""
    if seconds < 120:
        return f"{seconds:.1f} s" if 0.05 <= seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
