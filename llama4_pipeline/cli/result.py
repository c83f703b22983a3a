"""What a command says on standard output when it is done."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import click


def show(record: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Prints a result: text for a person, or one line of strict JSON (no NaN, no infinity: null)."""
    line = json.dumps(_finite(record), allow_nan=False) if as_json else text
    click.echo(line.encode("utf-8", "replace"))  # a path may be no UTF-8


def as_lines(record: Mapping[str, Any]) -> str:
    """One line for each figure that is there; the parts of a figure stand behind its name: latency.p50."""
    figures = dict(_flat(record, ""))
    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in figures.items())


def _flat(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
