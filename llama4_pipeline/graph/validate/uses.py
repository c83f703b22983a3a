"""The ways a decoder is used, as data: steps that PyTorch and the graph are both fed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import UNLIMITED
from llama4_pipeline.runtime.runs import cut, need_cutting

UseName = Literal["prefill", "decode", "chunked prefill", "second turn"]
Padding = Literal["none", "left", "right"]
Positions = Literal["raw", "mask", "shifted", "scattered"]
USES: tuple[UseName, ...] = get_args(UseName)
PADDINGS: tuple[Padding, ...] = get_args(Padding)
POSITIONS: tuple[Positions, ...] = get_args(Positions)

_DECODED_TOKENS = 4
_SHIFT = 5


@dataclass(frozen=True)
class Step:
    """One call of the model: new tokens after those already in the cache.

    Attributes:
        input_ids: int64 [batch, sequence].
        attention_mask: int64 [batch, past + sequence], 1 at real tokens.
        position_ids: int64 [batch, sequence], what the rotation is given.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    position_ids: np.ndarray

    @property
    def batch(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])

    @property
    def sequence(self) -> int:
        """Number of new tokens in a row, padding included."""
        return int(self.input_ids.shape[1])

    @property
    def past(self) -> int:
        """Number of tokens in the cache before this step, padding included."""
        return int(self.attention_mask.shape[1]) - self.sequence

    @property
    def real(self) -> np.ndarray:
        """bool [batch, sequence]: which new tokens are not padding."""
        return self.attention_mask[:, self.past :] != 0


@dataclass(frozen=True)
class Part:
    """What a graph is fed of a step at once: these rows and columns of it, as a step of their own."""

    rows: slice
    columns: slice
    step: Step


def whole(step: Step) -> list[Part]:
    """A step in one part."""
    return [Part(slice(None), slice(None), step)]


def runs_of(step: Step, chunk_size: int) -> list[Part]:
    """A step as a fused graph takes it: whole, or each row's runs of real tokens by themselves (`runtime.runs`)."""
    if not need_cutting(step.attention_mask, step.sequence, UNLIMITED, chunk_size):
        return whole(step)
    return [
        _part(step, row, begin, end)
        for row in range(step.batch)
        for begin, end in cut(step.attention_mask[row], step.sequence, UNLIMITED, chunk_size)
    ]


def _part(step: Step, row: int, begin: int, end: int) -> Part:
    rows, columns = slice(row, row + 1), slice(begin, end)
    mask = step.attention_mask[rows, : step.past + end]
    return Part(rows, columns, Step(step.input_ids[rows, columns], mask, step.position_ids[rows, columns]))


@dataclass(frozen=True)
class Case:
    """A use of the model on given tokens, fresh cache first."""

    use: UseName
    length: int
    batch: int
    padding: Padding
    positions: Positions
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return (
            f"{self.use} of length {self.length}, batch {self.batch}, "
            f"{self.padding} padding, {self.positions} positions"
        )


def make_case(
    use: UseName,
    length: int,
    batch: int,
    *,
    tokens: Sequence[int],
    padding: Padding = "none",
    positions: Positions = "raw",
    max_context: int,
    seed: int = 0,
) -> Case:
    """Lays out one use.

    Args:
        use: How the tokens are cut into steps.
        length: Tokens of the longest row over all steps, padding included, at least 1.
        batch: Rows. With padding, the first row is full and the others are shorter in every step of more than
            one token, by a seeded draw.
        tokens: Token ids to draw stretches from; row r starts at a seeded place and wraps around.
        padding: Side on which shorter rows are padded, step by step.
        positions: `raw` counts all columns from 0 (transformers when none are given); `mask` counts real
            tokens (transformers' generate); `shifted` adds five to that; `scattered` are ascending with gaps.
        max_context: Positions stay below this.
        seed: Of all draws.

    Returns:
        The case; its steps cover `length` columns.

    Raises:
        InputError: `length` or `batch` is not positive, or does not fit `max_context`.
    """
    if not 1 <= length <= max_context or batch < 1:
        raise InputError(
            f"length {length}, batch {batch}: expected 1 <= length <= {max_context} and batch >= 1"
        )
    rng = np.random.default_rng([seed, length, batch, USES.index(use), PADDINGS.index(padding)])
    sizes = _STEP_SIZES[use](length, rng)
    mask = np.concatenate([_padding_mask(size, batch, padding, rng) for size in sizes], axis=1)
    starts = rng.integers(0, len(tokens), size=(batch, 1))
    ids = np.asarray(tokens, dtype=np.int64)[(starts + np.arange(length)) % len(tokens)]
    ids = np.where(mask != 0, ids, ids[:, :1])
    position_ids = _position_ids(positions, mask, max_context, rng)
    ends = np.cumsum(sizes).tolist()
    steps = tuple(
        Step(ids[:, end - size : end], mask[:, :end], position_ids[:, end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    )
    return Case(use, length, batch, padding, positions, steps)


def text_cases(text: Sequence[int], window: int) -> Iterator[Case]:
    """Every token of a text once: prefills of `window` tokens each, the last one shorter."""
    for start in range(0, len(text), window):
        ids = np.asarray(text[start : start + window], dtype=np.int64)[None]
        step = Step(ids, np.ones_like(ids), np.arange(ids.shape[1])[None])
        yield Case("prefill", ids.shape[1], 1, "none", "raw", (step,))


def _padding_mask(size: int, batch: int, padding: Padding, rng: np.random.Generator) -> np.ndarray:
    mask = np.ones((batch, size), dtype=np.int64)
    if padding == "none" or size == 1:
        return mask
    for row in range(1, batch):
        pads = int(rng.integers(0, size))
        if padding == "left":
            mask[row, :pads] = 0
        else:
            mask[row, size - pads :] = 0
    return mask


def _position_ids(
    positions: Positions, mask: np.ndarray, max_context: int, rng: np.random.Generator
) -> np.ndarray:
    batch, length = mask.shape
    counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    if positions == "raw":
        return np.broadcast_to(np.arange(length), mask.shape).copy()
    if positions == "mask":
        return counted
    if positions == "shifted":
        return counted + min(_SHIFT, max_context - length)
    limit = min(max_context, 4 * length)
    drawn = np.stack([np.sort(rng.choice(limit, size=length, replace=False)) for _ in range(batch)])
    return np.take_along_axis(drawn, counted, axis=1)


def _prefill(length: int, rng: np.random.Generator) -> list[int]:
    return [length]


def _decode(length: int, rng: np.random.Generator) -> list[int]:
    decoded = min(_DECODED_TOKENS, length - 1)
    return [length - decoded] + [1] * decoded


def _chunked_prefill(length: int, rng: np.random.Generator) -> list[int]:
    cuts = sorted({*rng.integers(1, max(length, 2), size=2).tolist(), 0, length} & set(range(length + 1)))
    return [after - before for before, after in pairwise(cuts)]


def _second_turn(length: int, rng: np.random.Generator) -> list[int]:
    """A prompt, two answered tokens, a second prompt, one more token."""
    if length < 6:
        return _decode(length, rng)
    first = int(rng.integers(1, length - 4))
    return [first, 1, 1, length - first - 3, 1]


_STEP_SIZES: dict[UseName, Callable[[int, np.random.Generator], list[int]]] = {
    "prefill": _prefill,
    "decode": _decode,
    "chunked prefill": _chunked_prefill,
    "second turn": _second_turn,
}
