"""What is exported, and within which bounds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama4_pipeline.catalog import load_catalog

if TYPE_CHECKING:
    from llama4_pipeline_tests.large.run import Figures

GIB = 1 << 30
LIMIT_BYTES = 6 * GIB


@dataclass(frozen=True)
class Case:
    """One command, an export or a validation.

    Attributes:
        name: for the table.
        model: of the catalog; its weights are synthetic, bfloat16.
        layers: instead of the model's own number; None keeps it.
        options: of `llama4-pipeline export`, or of `validate`, which comes behind an export in float32.
        seconds: bound on the wall time of the command; None for none.
        peak_bytes: bound on its peak resident memory.
        limit_bytes: hard limit on its private memory.
        verb: "export" or "validate".
        shards: whether the checkpoint is written out as safetensors first; otherwise weights are made on demand.
    """

    name: str
    model: str
    layers: int | None
    options: tuple[str, ...]
    seconds: float | None
    peak_bytes: int
    limit_bytes: int = LIMIT_BYTES
    verb: Literal["export", "validate"] = "export"
    shards: bool = False

    def config(self) -> dict[str, Any]:
        """Keyword arguments of `Llama4TextConfig`."""
        changes = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return load_catalog()[self.model].config | changes

    def command(self, checkpoint: str, graph: str) -> list[str]:
        """The command line."""
        where = {"export": "--out", "validate": "--graph"}[self.verb]
        return ["llama4-pipeline", self.verb, "--checkpoint", checkpoint, where, graph, *self.options]

    def faults(self, figures: "Figures") -> list[str]:
        """The bounds that were broken."""
        found = []
        if figures.peak_bytes > self.peak_bytes:
            found.append(
                f"{self.name}: {figures.peak_bytes:,} bytes at the peak, at most {self.peak_bytes:,} allowed"
            )
        if self.seconds is not None and figures.seconds > self.seconds:
            found.append(f"{self.name}: {figures.seconds:.0f} s, at most {self.seconds:.0f} s allowed")
        return found


# The bound of the streams: 2 GiB and three times the largest piece, one expert of 5120 x 16384 in bfloat16.
_STREAM_PEAK = 2 * GIB + 3 * 5120 * 16384 * 2

CASES = (
    Case("Scout, graph only", "scout", None, ("--no-weights",), 120, 2 * GIB),
    Case("Scout, fused graph only", "scout", None, ("--no-weights", "--form", "fused"), 120, 2 * GIB),
    Case("Maverick, graph only", "maverick", None, ("--no-weights",), 120, 2 * GIB),
    Case("Maverick, fused graph only", "maverick", None, ("--no-weights", "--form", "fused"), 120, 2 * GIB),
    Case("Scout, 1 layer, INT4", "scout", 1, ("--precision", "int4"), None, _STREAM_PEAK),
    Case("Scout, 4 layers, INT4", "scout", 4, ("--precision", "int4"), None, _STREAM_PEAK),
    Case("Scout, 4 layers, INT8", "scout", 4, ("--precision", "int8"), None, _STREAM_PEAK),
    Case(
        "Scout, 4 layers, shards on disk, INT4",
        "scout",
        4,
        ("--precision", "int4"),
        None,
        _STREAM_PEAK,
        shards=True,
    ),
    Case("Scout, 4 layers, FP16", "scout", 4, ("--precision", "fp16"), None, _STREAM_PEAK),
    Case(
        "mini, validated layer by layer",
        "mini",
        None,
        ("--lengths", "33", "--batch", "1"),
        None,
        2 * GIB,
        3 * GIB,
        "validate",
    ),
)
