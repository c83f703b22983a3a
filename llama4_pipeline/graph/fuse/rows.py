"""Rows in order: what GroupQueryAttention needs to serve padded rows, computed once for all layers.

The operator keeps each row of its cache without holes: row b holds its n_b real tokens, in a chunked layer those of its
current chunk, at slots 0 .. n_b - 1. So new
tokens enter with the real ones of each row first, wherever its pads are, and logits leave in the caller's order. A pad
behind the real tokens is written to a slot that the next token overwrites, and no real token sees it.

S and T come from Shape, so on the CPU. Operators take them as sizes and bounds from there; what is computed with on the
device is a Range of that size, or an element of one: a copy from the CPU would keep a step out of a CUDA graph.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from llama4_pipeline.graph.fuse.rewriter import END, Rewriter

_MORE_THAN_A_CONTEXT = 1 << 40


class Rows:
    """Values for all layers; each is made when first asked for. B rows, S new tokens, T = cached + new."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter, self._op = rewriter, rewriter.preamble.op
        self._mask = rewriter.input("attention_mask")

    def in_order(self, name: str) -> ir.Value:
        """Graph input `name` [B, S] with the real tokens of each row first."""
        return self._once(
            f"{name}.in_order",
            lambda: self._op("GatherElements", [self._rewriter.input(name), self.turn], {"axis": 1}),
        )

    @property
    def new(self) -> ir.Value:
        """S as int64 [1]."""
        return self._once(
            "new", lambda: self._op("Shape", [self._rewriter.input("input_ids")], {"start": 1, "end": 2})
        )

    @property
    def total(self) -> ir.Value:
        """T as int64 [1]."""
        return self._once("total", lambda: self._op("Shape", [self._mask], {"start": 1, "end": 2}))

    @property
    def total_sequence_length(self) -> ir.Value:
        """T as int32 [], as GroupQueryAttention takes it."""
        return self._once(
            "total_sequence_length",
            lambda: self._op("Cast", [self._total_scalar], {"to": ir.DataType.INT32}),
        )

    @property
    def cached(self) -> ir.Value:
        """Real tokens in the cache of each row, int64 [B, 1]."""

        def make() -> ir.Value:
            ints = self._rewriter.ints
            past = self._op("Slice", [self._mask, ints(0), self._minus_new, ints(1)])
            return self._op("ReduceSum", [past, ints(1)])

        return self._once("cached", make)

    @property
    def seqlens_k(self) -> ir.Value:
        """Cached + S - 1 of each row, int32 [B]: the last slot that this call writes."""

        def make() -> ir.Value:
            last = self._op("Add", [self.cached, self._all_but_one])
            flat = self._op("Squeeze", [last, self._rewriter.ints(1)])
            return self._op("Cast", [flat], {"to": ir.DataType.INT32})

        return self._once("seqlens_k", make)

    @property
    def turn(self) -> ir.Value:
        """Where in the caller's row the s-th token in order stands, int64 [B, S]: real ones first, then pads."""

        def make() -> ir.Value:
            ints = self._rewriter.ints
            recent = self._op("Slice", [self._mask, self._minus_new, ints(END), ints(1)])
            first = self._op("Mul", [recent, ints(_MORE_THAN_A_CONTEXT)])
            rank = self._op("Sub", [first, self._counting])
            return self._rewriter.preamble.op_multi_out(
                "TopK", [rank, self.new], {"axis": -1}, num_outputs=2
            )[1]

        return self._once("turn", make)

    @property
    def turn_back(self) -> ir.Value:
        """Where in the ordered row the caller's s-th token stands, int64 [B, S, 1]."""

        def make() -> ir.Value:
            counted = self._op("Expand", [self._counting, self._op("Shape", [self.turn])])
            back = self._op("ScatterElements", [self.turn, self.turn, counted], {"axis": 1})
            return self._op("Unsqueeze", [back, self._rewriter.ints(2)])

        return self._once("turn_back", make)

    @property
    def query_slots(self) -> ir.Value:
        """Slot among all T of the caller's mask of each token in order, int64 [B, S]."""
        return self._once("query_slots", lambda: self._op("Gather", [self._new_slots, self.turn]))

    @property
    def slots_are_counted(self) -> bool:
        """Whether a value reads `query_slots`, so that padding on the left of the whole mask makes a difference."""
        return self._rewriter.has_made("rows.query_slots")

    def total_in_chunk(self, chunk_size: int) -> ir.Value:
        """Most tokens that a row of a chunked layer's cache holds behind this call, int32 []."""

        def make() -> ir.Value:
            size = self._rewriter.constant(
                f"chunk.{chunk_size}", ir.tensor(chunk_size, dtype=ir.DataType.INT32)
            )
            return self._op("Min", [self.total_sequence_length, size])

        return self._once(f"total_in_chunk.{chunk_size}", make)

    def seqlens_in_chunk(self, chunk_size: int) -> ir.Value:
        """`seqlens_k` of a cache that begins anew with each chunk, int32 [B].

        Chunks count the caller's slots from a row's first real token, holes included, as transformers does. The new
        tokens of a row must lie in one chunk: on the CPU, Gather refuses those that leave it.
        """

        def make() -> ir.Value:
            op, ints = self._op, self._rewriter.ints
            past = op("Gather", [self._new_slots, ints(0)])
            before = op("CumSum", [self._mask, ints(1)], {"exclusive": 1})  # CUDA has no ArgMax of integers
            led = op("Cast", [op("Equal", [before, ints(0)])], {"to": ir.DataType.INT64})
            first = op("Sub", [op("ReduceSum", [led, ints(1)]), ints(1)])
            begun = op("Max", [op("Sub", [past, first]), ints(0)])
            inside = op("Mod", [begun, ints(chunk_size)])  # slots of the chunk before the new ones, [B, 1]
            earlier = op("GatherElements", [before, op("Sub", [past, inside])], {"axis": 1})
            holes = op("Sub", [inside, op("Sub", [self.cached, earlier])])
            places = self._rewriter.constant(f"chunk.places.{chunk_size}", ir.tensor(np.arange(chunk_size)))
            last = op("Add", [inside, self._all_but_one])
            last = op("Gather", [places, last], name="new_tokens_lie_in_one_chunk")
            flat = op("Squeeze", [op("Sub", [last, holes]), ints(1)])
            return op("Cast", [flat], {"to": ir.DataType.INT32})

        return self._once(f"seqlens_in_chunk.{chunk_size}", make)

    @property
    def _counting(self) -> ir.Value:
        """0 .. S - 1, int64 [1, S]."""
        return self._once(
            "counting",
            lambda: self._op(
                "Unsqueeze", [self._range(self._op("Squeeze", [self.new])), self._rewriter.ints(0)]
            ),
        )

    @property
    def _all_but_one(self) -> ir.Value:
        """S - 1, int64 [1, 1]."""
        ints = self._rewriter.ints
        return self._once("all_but_one", lambda: self._op("Gather", [self._counting, ints(-1)], {"axis": 1}))

    @property
    def _new_slots(self) -> ir.Value:
        """Slots of the caller's mask that are new: T - S .. T - 1, int64 [S]."""
        ints = self._rewriter.ints
        return self._once(
            "new_slots",
            lambda: self._op("Slice", [self._range(self._total_scalar), self._minus_new, ints(END), ints(0)]),
        )

    @property
    def _minus_new(self) -> ir.Value:
        """-S, int64 [1]: where the new tokens begin, from the end."""
        return self._once("minus_new", lambda: self._op("Neg", [self.new]))

    @property
    def _total_scalar(self) -> ir.Value:
        """T as int64 []."""
        return self._once("total_scalar", lambda: self._op("Squeeze", [self.total]))

    def _range(self, end: ir.Value) -> ir.Value:
        zero, one = (
            self._rewriter.constant(f"range.{n}", ir.tensor(n, dtype=ir.DataType.INT64)) for n in (0, 1)
        )
        return self._op("Range", [zero, end, one])

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        return self._rewriter.once(f"rows.{name}", make)
