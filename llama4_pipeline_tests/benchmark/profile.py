"""Accounts for a decode token kernel by kernel, from ONNX Runtime's own profile; writes docs/performance.md."""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.machine import describe_machine
from llama4_pipeline.metrics.bandwidth import measure_read_bandwidth
from llama4_pipeline.metrics.roofline import bytes_by_node, cache_read_bytes, graph_architecture, stored_graph
from llama4_pipeline.runtime.engines import available_cores
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline_tests.benchmark.cases import Entry, find_models
from llama4_pipeline_tests.benchmark.page import replace_between
from llama4_pipeline_tests.benchmark.prepare import Workshop

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- profile: begin -->", "<!-- profile: end -->"
_CONTEXTS = (16, 2048)
_STEPS = 16
_WARM_UP_STEPS = 4
_SMALL_SHARE = 0.01
_ATTENTION = "GroupQueryAttention"


@dataclass(frozen=True)
class Kind:
    """Nodes of one operator and one shape of weights, per decode token; times are medians over the steps.

    Attributes:
        name: operator, and the shape of its largest weight.
        nodes: of this kind.
        microseconds: of all of them.
        read_bytes: weights, or cache, that they read.
    """

    name: str
    nodes: int
    microseconds: float
    read_bytes: float


@dataclass(frozen=True)
class Account:
    """A decode token at one context: kinds from the costliest down, and the step as the caller sees it."""

    context: int
    kinds: tuple[Kind, ...]
    step_microseconds: float
    plain_step_microseconds: float

    @property
    def kernel_microseconds(self) -> float:
        """Inside kernels."""
        return sum(kind.microseconds for kind in self.kinds)


def main() -> int:
    """Profiles the INT4 graph of each model and writes the page's part between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mini", help="names of the catalog, separated by commas")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--scratch", type=Path, default=Path("/var/tmp/llama4-benchmark"), help="graphs stay there"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bandwidth = measure_read_bandwidth(asked.threads)
    machine = describe_machine(bandwidth)
    parts = [
        f"{machine.cpu} ({', '.join(machine.features)}), {asked.threads} threads, {bandwidth / 1e9:.1f} GB/s read; "
        f"ONNX Runtime {machine.libraries['onnxruntime']}, {asked.precision.upper()}, batch 1.\n"
    ]
    for model in find_models(tuple(asked.models.split(",")), "cpu"):
        graph = Workshop(model, asked.scratch).path(Entry("onnxruntime", asked.precision))
        for context in _CONTEXTS:
            parts.append(f"\n### {model.title}, after {context:,} tokens\n\n")
            parts.append(section(account(graph, asked.threads, context), bandwidth))
    replace_between(asked.page, BEGIN, END, "".join(parts))
    return 0


def account(graph: Path, threads: int, context: int) -> Account:
    """Decodes some tokens with and without the profile and adds up what each kind of node took."""
    plain, _ = _decode(graph, threads, context, None)
    with tempfile.TemporaryDirectory() as directory:
        step, events = _decode(graph, threads, context, Path(directory) / "profile")
    return Account(context, tuple(_kinds(events, graph, context)), step, plain)


def section(found: Account, bandwidth: float) -> str:
    """One table and the sum behind it."""
    lines = ["| kernel | nodes | µs | of the step | MB read | GB/s |\n|---|---:|---:|---:|---:|---:|\n"]
    step = found.step_microseconds
    for kind in found.kinds:
        read = kind.read_bytes / 1e6
        rate = f"{kind.read_bytes / kind.microseconds / 1e3:.1f}" if read >= 0.1 else ""
        lines.append(
            f"| {kind.name} | {kind.nodes} | {kind.microseconds:.0f} | {kind.microseconds / step:.1%} "
            f"| {f'{read:.1f}' if read >= 0.1 else ''} | {rate} |\n"
        )
    between = step - found.kernel_microseconds
    nodes = sum(kind.nodes for kind in found.kinds)
    read = sum(kind.read_bytes for kind in found.kinds)
    lines.append(f"| between kernels, and in Python | | {between:.0f} | {between / step:.1%} | | |\n")
    lines.append(
        f"| **step** | **{nodes}** | **{step:.0f}** | | **{read / 1e6:.1f}** | **{read / step / 1e3:.1f}** |\n"
    )
    floor, plain = read / bandwidth * 1e6, found.plain_step_microseconds
    lines.append(
        f"\nReading {read / 1e6:.1f} MB once takes {floor:.0f} µs at full bandwidth. A step without the profiler takes "
        f"{plain:.0f} µs: {floor / plain:.0%} of the roofline.\n"
    )
    return "".join(lines)


def _decode(graph: Path, threads: int, context: int, prefix: Path | None) -> tuple[float, list[dict]]:
    """Median microseconds of a step, and the profile's events of the timed steps."""
    decoder = OrtDecoder(graph, threads, profile=prefix)
    random = np.random.default_rng(0)
    decoder.forward(random.integers(0, decoder.vocab_size, (1, context)), logits_to_keep=1)
    seconds = []
    for _ in range(_WARM_UP_STEPS + _STEPS):
        token = random.integers(0, decoder.vocab_size, (1, 1))
        start = time.perf_counter()
        decoder.forward(token, logits_to_keep=1).argmax()
        seconds.append(time.perf_counter() - start)
    step = 1e6 * statistics.median(seconds[_WARM_UP_STEPS:])
    if prefix is None:
        return step, []
    events = json.loads(decoder.end_profile().read_bytes())
    runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    return step, [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= runs[-_STEPS]
    ]


def _kinds(events: list[dict], graph: Path, context: int) -> list[Kind]:
    weights, architecture = bytes_by_node(graph), graph_architecture(graph)
    times: dict[str, list[float]] = defaultdict(list)
    operators = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(event["dur"])
        operators[name] = event["args"]["op_name"]
    cache = _cache_bytes(architecture, graph, context)
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, durations in times.items():
        weight = weights.get(name)
        shape = f" {weight.shape}" if weight and weight.shape else ""
        read = weight.read_bytes if weight else 0.0
        if operators[name] == _ATTENTION:
            read += cache / len(architecture.layers)
        kinds[operators[name] + shape].append((statistics.median(durations), read))
    found = [
        Kind(name, len(each), sum(time for time, _ in each), sum(read for _, read in each))
        for name, each in kinds.items()
    ]
    return _named(sorted(found, key=lambda kind: -kind.microseconds))


def _named(kinds: list[Kind]) -> list[Kind]:
    """The kinds that cost something; the small ones in one line at the end."""
    least = _SMALL_SHARE * sum(kind.microseconds for kind in kinds)
    small = [kind for kind in kinds if kind.microseconds < least]
    rest = Kind(
        f"{len(small)} kinds of less than {_SMALL_SHARE:.0%} each",
        sum(kind.nodes for kind in small),
        sum(kind.microseconds for kind in small),
        sum(kind.read_bytes for kind in small),
    )
    return [kind for kind in kinds if kind.microseconds >= least] + ([rest] if small else [])


def _cache_bytes(architecture: Architecture, graph: Path, context: int) -> int:
    first = context + _WARM_UP_STEPS
    return cache_read_bytes(architecture, first, _STEPS + 1, stored_graph(graph).cache_element_bytes)


if __name__ == "__main__":
    sys.exit(main())
