"""What is exported, and within which bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.units import format_number
from llama4_pipeline_tests.large.figures import Figures

GIB = 1 << 30
LIMIT_BYTES = 6 * GIB
BUSY_LOAD = 0.5
"""Other runnable processes per core from which on a machine is called busy."""
STREAM_WEIGHTS_PER_SECOND = 100e6
CALIBRATION_FILE = "calibration.jsonl"
_ONCE = 1.05  # bytes that pass, next to the bytes that there are
_OWN_BYTES = 500_000_000  # that a process reads besides: Python and its libraries
_LINEAR = 1.5


@dataclass(frozen=True)
class Case:
    """One command: an export, or what comes behind an export in float32, a validation or a quantization.

    Attributes:
        name: for the table.
        model: of the catalog; its weights are synthetic, bfloat16.
        layers: instead of the model's own number; None keeps it.
        options: of the command.
        peak_bytes: bound on its peak resident memory.
        seconds: bound on the wall time of the command; None for none.
        weights_per_second: bound on them, by wall time; None for none.
        limit_bytes: hard limit on its private memory.
        verb: "export", "validate" or "quantize".
        calibration_tokens: random ones that are written to `calibration.jsonl` in the directory where it runs.
        free_bytes: of disk, without which it is left out.
        shards: whether the checkpoint is written out as safetensors first, so that each byte is to be read and
            written once; otherwise weights are made on demand.
    """

    name: str
    model: str
    layers: int | None
    options: tuple[str, ...]
    peak_bytes: int
    seconds: float | None = None
    weights_per_second: float | None = None
    limit_bytes: int = LIMIT_BYTES
    verb: Literal["export", "validate", "quantize"] = "export"
    calibration_tokens: int = 0
    free_bytes: int = 0
    shards: bool = False

    @property
    def checkpoint(self) -> str:
        """The name of its checkpoint directory."""
        return f"{self.model}-shards" if self.shards else self.model

    @property
    def streams(self) -> bool:
        """Whether the weights flow through it."""
        return self.verb == "export" and "--no-weights" not in self.options

    def config(self) -> dict[str, Any]:
        """Keyword arguments of `Llama4TextConfig`."""
        changes = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return load_catalog()[self.model].config | changes

    def command(self, checkpoint: str, graph: str, float_graph: str) -> list[str]:
        """The command line.

        Args:
            checkpoint: directory of the model.
            graph: directory that is made, or validated.
            float_graph: directory of the float32 graph that is quantized.
        """
        places = {
            "export": ["--checkpoint", checkpoint, "--out", graph],
            "validate": ["--checkpoint", checkpoint, "--graph", graph],
            "quantize": ["--graph", float_graph, "--out", graph],
        }
        return ["llama4-pipeline", self.verb, *places[self.verb], *self.options]

    def faults(self, figures: Figures) -> list[str]:
        """The bounds that were broken."""
        return [f"{self.name}: {fault}" for fault in (*self._slow(figures), *self._large(figures))]

    def _slow(self, figures: Figures) -> list[str]:
        found = []
        if self.seconds is not None and figures.seconds > self.seconds:
            found.append(f"{figures.seconds:.0f} s, at most {self.seconds:.0f} s allowed")
        rate = figures.parameters / figures.seconds
        if self.weights_per_second is not None and rate < self.weights_per_second:
            found.append(f"{_million(rate)} weights/s, at least {_million(self.weights_per_second)} wanted")
        return [fault + _busy(figures) for fault in found]

    def _large(self, figures: Figures) -> list[str]:
        bounds = [("at the peak", figures.peak_bytes, self.peak_bytes)]
        if self.shards:  # what is written is read again once, for its hash in manifest.json
            through = figures.input_bytes + figures.output_bytes
            bounds += [
                ("read", figures.read_bytes, round(_ONCE * through) + _OWN_BYTES),
                ("written", figures.written_bytes, round(_ONCE * figures.output_bytes)),
            ]
        return [
            f"{found:,} bytes {what}, at most {most:,} allowed"
            for what, found, most in bounds
            if found > most
        ]


# The bound of the streams: 2 GiB and three times the largest piece, one expert of 5120 x 16384 in bfloat16.
_STREAM_PEAK = 2 * GIB + 3 * 5120 * 16384 * 2
_GRAPH_ONLY, _FUSED = ("--no-weights",), ("--form", "fused")
_ONE_LAYER_GRAPH = Case(
    "Scout, 1 layer, fused graph only", "scout", 1, (*_GRAPH_ONLY, *_FUSED), 2 * GIB, seconds=120
)
_ONE_LAYER = Case("Scout, 1 layer, INT4", "scout", 1, ("--precision", "int4"), _STREAM_PEAK)
_FOUR_LAYERS = Case(
    "Scout, 4 layers, INT4",
    "scout",
    4,
    ("--precision", "int4"),
    _STREAM_PEAK,
    weights_per_second=STREAM_WEIGHTS_PER_SECOND,
)
_ALL_LAYERS = Case(
    "Scout, all 48 layers, INT4",
    "scout",
    None,
    ("--precision", "int4"),
    _STREAM_PEAK,
    weights_per_second=STREAM_WEIGHTS_PER_SECOND,
    free_bytes=64_000_000_000,
)

CASES = (
    Case("Scout, graph only", "scout", None, _GRAPH_ONLY, 2 * GIB, seconds=120),
    Case("Scout, fused graph only", "scout", None, (*_GRAPH_ONLY, *_FUSED), 2 * GIB, seconds=120),
    Case("Maverick, graph only", "maverick", None, _GRAPH_ONLY, 2 * GIB, seconds=120),
    Case("Maverick, fused graph only", "maverick", None, (*_GRAPH_ONLY, *_FUSED), 2 * GIB, seconds=120),
    _ONE_LAYER_GRAPH,
    _ONE_LAYER,
    _FOUR_LAYERS,
    Case("Scout, 4 layers, INT8", "scout", 4, ("--precision", "int8"), _STREAM_PEAK),
    Case(
        "Scout, 4 layers, shards on disk, INT4",
        "scout",
        4,
        ("--precision", "int4"),
        _STREAM_PEAK,
        shards=True,
    ),
    Case("Scout, 4 layers, FP16", "scout", 4, ("--precision", "fp16"), _STREAM_PEAK),
    Case(
        "mini, validated layer by layer",
        "mini",
        None,
        ("--lengths", "33", "--batch", "1"),
        2 * GIB,
        limit_bytes=3 * GIB,
        verb="validate",
    ),
    Case(
        "mini, float32 graph to INT4",
        "mini",
        None,
        ("--precision", "int4", "--method", "rtn"),
        2 * GIB,
        verb="quantize",
    ),
    Case(
        "mini, float32 graph to INT4 by gptq",
        "mini",
        None,
        ("--precision", "int4", "--method", "gptq", "--calibration", CALIBRATION_FILE),
        8 * GIB,
        seconds=15 * 60,
        limit_bytes=8 * GIB,
        verb="quantize",
        calibration_tokens=1 << 15,
    ),
    _ALL_LAYERS,
)


def growth_faults(measured: Mapping[str, Figures]) -> list[str]:
    """Whether time grows with the weights alone: CPU time per weight, without that of the graph, is that of one layer.

    Args:
        measured: by the name of the case, of one machine and day; nothing is said of what is missing.
    """
    if not {_ONE_LAYER_GRAPH.name, _ONE_LAYER.name} <= measured.keys():
        return []

    def seconds(case: Case) -> float:
        """Per billion weights."""
        figures = measured[case.name]
        return (figures.cpu_seconds - measured[_ONE_LAYER_GRAPH.name].cpu_seconds) / figures.parameters * 1e9

    of_one = seconds(_ONE_LAYER)
    return [
        f"{case.name}: {format_number(seconds(case))} CPU seconds per billion weights, at most {_LINEAR} times the "
        f"{format_number(of_one)} of one layer allowed{_busy(measured[case.name])}"
        for case in (_FOUR_LAYERS, _ALL_LAYERS)
        if case.name in measured and seconds(case) > _LINEAR * of_one
    ]


def _busy(figures: Figures) -> str:
    if figures.load <= BUSY_LOAD:
        return ""
    return f"; the machine was busy: {figures.load:.1f} other runnable processes per core"


def _million(rate: float) -> str:
    return f"{format_number(rate / 1e6)} M"
