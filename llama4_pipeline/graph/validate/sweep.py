"""Which lengths and uses a validation covers."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, product
from typing import Literal

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.validate.uses import POSITIONS, USES, Case, Padding, make_case
from llama4_pipeline.llama4.architecture import Architecture

LONGEST = 2048
_SAMPLE = 8
_USE_LENGTHS = 4
_PREFILL_TOKENS = 2048  # a prefill of a sweep has at most so many tokens over its rows, one row at least
_USE_TOKENS = 1024

Lengths = Sequence[int] | Literal["default", "all"]


def sweep_lengths(architecture: Architecture, lengths: Lengths, max_context: int) -> list[int]:
    """Resolves the lengths of a sweep.

    Args:
        architecture: Whose borders are looked for.
        lengths: Explicit lengths; `all` is 1 to 2048; `default` takes the borders and a seeded sample of
            the others. A border is a multiple of the chunk size or of `floor_scale` (the first and second)
            or a power of two, each with its two neighbors.
        max_context: What the graph holds. `default` and `all` end there.

    Raises:
        InputError: An explicit length is not positive or longer than the graph holds.
    """
    longest = min(LONGEST, max_context)
    if lengths == "all":
        return list(range(1, longest + 1))
    if lengths == "default":
        borders = _borders(architecture)
        sample = np.random.default_rng(0).integers(1, longest + 1, size=_SAMPLE).tolist()
        return sorted(length for length in {1, longest, *borders, *sample} if 1 <= length <= longest)
    explicit = [int(length) for length in lengths]
    for length in explicit:
        if not 1 <= length <= max_context:
            raise InputError(f"length {length}: the graph holds 1 to {max_context} tokens")
    return explicit


def require_batches(batches: Sequence[int]) -> None:
    """Refuses numbers of rows that are none, or not positive.

    Raises:
        InputError: names them.
    """
    if not batches or min(batches) < 1:
        raise InputError(f"batches {list(batches)}: give numbers of rows, each 1 or more")


def sweep_cases(
    lengths: Lengths,
    resolved: Sequence[int],
    batches: Sequence[int],
    *,
    tokens: Sequence[int],
    max_context: int,
) -> Iterator[Case]:
    """Lays out the cases: a prefill at every length, and every use at every batch.

    Explicit lengths are each run at every batch. In the `default` and `all` sweeps a length is run at one
    batch, the batches taking turns. The uses (decode, chunked prefill, second turn, each unpadded, left-
    and right-padded, with the four kinds of positions in turn) are run at every batch, on lengths that take
    turns.
    """
    lay_out = partial(make_case, tokens=tokens, max_context=max_context)
    for length, batch in product(resolved, batches) if _explicit(lengths) else _turns(resolved, batches):
        yield lay_out("prefill", length, batch)
    positions = cycle(POSITIONS)
    for batch in batches:
        limit = max(_USE_TOKENS // batch, min(resolved))
        fitting = [length for length in resolved if length <= limit]
        turns = cycle(_spread(fitting, _USE_LENGTHS))
        paddings: tuple[Padding, ...] = ("none", "left", "right") if batch > 1 else ("none",)
        for use, padding in product(USES, paddings):
            yield lay_out(use, next(turns), batch, padding=padding, positions=next(positions))


def _explicit(lengths: Lengths) -> bool:
    return not isinstance(lengths, str)


def _turns(lengths: Sequence[int], batches: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every length once, the batches that are not too large for it in turn."""
    for turn, length in enumerate(lengths):
        fitting = [batch for batch in batches if batch * length <= _PREFILL_TOKENS] or [min(batches)]
        yield length, fitting[turn % len(fitting)]


def _borders(architecture: Architecture) -> set[int]:
    steps = {layer.chunk_size for layer in architecture.layers if layer.chunk_size}
    if any(layer.temperature_tuning for layer in architecture.layers):
        steps.add(architecture.floor_scale)
    centers = {2**power for power in range(12)} | {step * times for step in steps for times in (1, 2)}
    return {center + offset for center in centers for offset in (-1, 0, 1)}


def _spread(lengths: list[int], count: int) -> list[int]:
    """A few of the lengths, the longest among them, evenly over the list."""
    picks = np.unique(np.linspace(len(lengths) - 1, 0, num=count + 1, dtype=int)[:count])
    return [lengths[pick] for pick in picks[::-1]]
