"""Tries what graphs for CUDA could do otherwise: does it compute the same, how fast is it, and in which kernels.

`python -m llama4_pipeline_tests.benchmark.trial --out FILE` writes a line of JSON for each variant as soon as it is
measured. A variant may be refused, or take its process with it: its line says so. What proves itself belongs into the
package; nothing of what is tried here is in it.
"""

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self, cast
from unittest import mock

import numpy as np
import onnx
from pydantic import BaseModel

from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.graph import quantize
from llama4_pipeline.graph.one_stream import Precision, export_in_one_stream
from llama4_pipeline.graph.quantize.plan import DeviceName
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.validate.compare import cosine_of
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.metrics.sweep import Plan, Sweep, measure_sweep
from llama4_pipeline.probabilities import kl_divergence, log_softmax
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.engines import available_cores, open_decoder
from llama4_pipeline.runtime.ort import OrtDecoder

# Kernels of TensorRT-LLM for float16 tokens and weights of 4 or 8 bits, https://github.com/microsoft/onnxruntime
# (contrib_ops/cuda/quantization/matmul_nbits.h): blocks of 32, 64 and 128, no partial one.
INTB = {"ORT_FPA_INTB_GEMM": "1"}
# Attention of one query by XQA (contrib_ops/cuda/bert/group_query_attention.cc), off for float caches by default.
XQA = {"ORT_ENABLE_XQA": "1"}
_PROMPT, _STEPS = 40, 24
_MAX_CONTEXT = 4096
_MOST_KERNELS = 40
_PLAN = Plan(contexts=(16, 2047), batches=(2, 8), new_tokens=16, warm_up_lengths=True)
_LIMIT_SECONDS = 90
_PROCESSES = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
_logger = logging.getLogger("llama4_pipeline.trial")


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: says what is other than usual.
        precision: of the graph; of PyTorch for "float16" and the like.
        captured: whether steps are replayed as a CUDA graph.
        scheme: of all products and experts; None takes the preset's.
        rotates: whether GroupQueryAttention rotates and norms query and key itself.
        environment: of the process that opens it.
    """

    name: str
    precision: str
    captured: bool = False
    scheme: Scheme | None = None
    rotates: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> str | None:
        """Names the graph that it opens; several variants may share one."""
        if self.precision not in ("fp16", "int8", "int4"):
            return None
        scheme = self.scheme
        blocks = f"-{scheme.block_size}{'' if scheme.symmetric else '-zeros'}" if scheme else ""
        return f"{self.precision}{blocks}{'-rotates' if self.rotates else ''}"


class Kernel(BaseModel):
    """A kernel's part of a step: how often it runs, and microseconds of all its runs."""

    name: str
    runs: float
    microseconds: float


class Result(BaseModel):
    """What became of a variant."""

    model: str
    variant: str
    refused: str | None = None
    cosine: dict[str, float] = {}
    """Least over the tokens, against PyTorch in float32: of a prompt, of steps, of rows of different length."""
    kl_divergence: float | None = None
    sweep: Sweep | None = None
    providers: dict[str, int] = {}
    kernels: dict[int, list[Kernel]] = {}
    """Tokens of context -> kernels of a step, the longest first; CUDA only."""


def variants() -> dict[tuple[str, int | None], list[Variant]]:
    """By model and layers; what matters most comes first."""
    usual, captured = Variant("usual", "int4"), Variant("captured", "int4", captured=True)
    intb = replace(captured, name="captured, intb", environment=INTB)
    rotates = replace(intb, name="captured, intb, rotates", rotates=True)
    both = replace(rotates, name="captured, intb, rotates, xqa", environment=INTB | XQA)
    float16 = [
        replace(usual, precision="fp16"),
        replace(captured, precision="fp16"),
        Variant("captured, rotates, xqa", "fp16", captured=True, rotates=True, environment=XQA),
    ]
    int8 = [replace(each, precision="int8") for each in (captured, intb)]
    blocks = [
        replace(way, precision=f"int{bits}", name=f"{way.name}, blocks of {size}", scheme=scheme)
        for bits, size, symmetric in ((8, 64, True), (4, 128, True), (4, 32, True), (8, 64, False))
        for scheme in [Scheme(bits=bits, block_size=size, symmetric=symmetric)]
        for way in (captured, intb)
    ]
    pytorch = Variant("eager", "float16")
    return {
        ("7b", 2): [usual, captured, intb, rotates, both, *float16, *int8, pytorch, *blocks],
        ("mini", None): [usual, captured, intb, both, *float16, *int8, pytorch],
    }


def main() -> int:
    """Runs every variant of every model; always 0, since a refusal is a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--models", default="", help="of those that are tried, separated by commas")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    wanted = set(filter(None, asked.models.split(",")))
    tried = {model: ways for model, ways in variants().items() if not wanted or model[0] in wanted}
    if unknown := wanted - {model for model, _ in tried}:
        known = ", ".join(model for model, _ in variants())
        parser.error(f"no variants of {', '.join(sorted(unknown))}; those of {known} are tried")
    with tempfile.TemporaryDirectory(prefix="llama4-trial-") as scratch:
        trials = [Trial(Path(scratch), *model, ways, asked.device) for model, ways in tried.items()]
        for trial in trials:
            trial.write_checkpoint()
        with ProcessPoolExecutor(max(available_cores() // 2, 1), _PROCESSES) as makers:
            made = {
                (trial.model, name): makers.submit(trial.make, name)
                for trial in trials
                for name in trial.graphs()
            }
            wait(made.values())
        for graph, done in made.items():
            if error := done.exception():
                _logger.error("%s %s: %s", *graph, error)
        for trial in trials:
            for result in trial.results():
                with asked.out.open("a") as out:
                    out.write(result.model_dump_json() + "\n")
                _logger.info("%s", _said(result))
    return 0


@dataclass(frozen=True)
class Trial:
    """The variants of one model, whose weights are random, in a directory of its own."""

    scratch: Path
    model: str
    layers: int | None
    ways: list[Variant]
    device: DeviceName

    @property
    def checkpoint(self) -> Path:
        """What `write_checkpoint` wrote."""
        return self.scratch / self.model

    def write_checkpoint(self) -> None:
        """Before the graphs are made, several at once."""
        spec = load_catalog()[self.model]
        changes = {} if self.layers is None else {"num_hidden_layers": self.layers}
        write_synthetic_checkpoint(self.checkpoint, spec.config | changes, spec.seed, "bfloat16")

    def graphs(self) -> list[str]:
        """Of all variants, each once."""
        return sorted({way.graph for way in self.ways if way.graph})

    def make(self, graph: str) -> None:
        """Writes a graph directory."""
        way = next(way for way in self.ways if way.graph == graph)
        out = self.scratch / f"{self.model}-{graph}"
        with _all_alike(way.scheme) if way.scheme else nullcontext():
            _export(Checkpoint.open(self.checkpoint), out, cast(Precision, way.precision), self.device)
        if way.rotates:
            let_attention_rotate(out / "model.onnx")

    def results(self) -> Iterator[Result]:
        """Each variant in a process of its own."""
        reference = self.scratch / f"{self.model}-reference.npz"
        with Apart() as apart:
            if ended := apart.run(_keep_reference, self.checkpoint, reference, self.device):
                _logger.error("%s: nothing to hold the variants against: %s", self.model, ended)
            for way in self.ways:
                told = self.scratch / "result.json"
                told.unlink(missing_ok=True)
                ended = apart.run(_try, self, way, reference, told)
                result = Result(model=self.model, variant=f"{way.precision} {way.name}")
                if told.exists():
                    result = Result.model_validate_json(told.read_text())
                result.refused = ended or result.refused
                yield result


class Apart:
    """Runs functions in processes of their own, the next of which loads its libraries beside the one at work."""

    def __enter__(self) -> Self:
        self._start_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._next.kill()
        self._next.join()

    def run(self, function: Callable[..., None], *arguments: object) -> str | None:
        """Returns why the process did not come to its end."""
        process, order = self._next, self._order
        self._start_next()
        order.send((function, arguments))
        process.join(_LIMIT_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return f"took more than {_LIMIT_SECONDS} s"
        return f"its process ended with {process.exitcode}" if process.exitcode else None

    def _start_next(self) -> None:
        heard, self._order = _PROCESSES.Pipe(duplex=False)
        self._next = _PROCESSES.Process(target=_wait_for_order, args=(heard,))
        self._next.start()


def _wait_for_order(heard: Connection) -> None:
    for library in ("torch", "transformers.models.llama4", "onnxruntime"):
        importlib.import_module(library)
    function, arguments = heard.recv()
    function(*arguments)


def _all_alike(scheme: Scheme) -> AbstractContextManager:
    """While it holds, a preset has one scheme for all that is not looked up."""
    parts = ("experts", "shared", "feed_forward", "qkv", "attention_output", "head")
    presets = {
        name: replace(preset, **dict.fromkeys(parts, scheme)) for name, preset in quantize.PRESETS.items()
    }
    return mock.patch.multiple(quantize, PRESETS=presets, DENSE_PRESETS=presets)


def _export(checkpoint: Checkpoint, out: Path, precision: Precision, device: DeviceName) -> None:
    rounded: dict = {} if precision == "fp16" else {"method": "rtn", "device": device}
    export_in_one_stream(
        checkpoint, out, form="fused", precision=precision, max_context=_MAX_CONTEXT, **rounded
    )


def let_attention_rotate(file: Path) -> int:
    """Has GroupQueryAttention norm and rotate query and key, which it then takes packed; returns in how many layers.

    Raises:
        ValueError: in none, and what is measured would be the graph as it was.

    Positions are counted from the first token of a row, where `RotaryEmbedding` takes them as they are given. Only
    CUDA's kernel norms, and before it rotates; weights that are all alike commute with that.
    """
    model = onnx.load(file, load_external_data=False)
    nodes, layers = model.graph.node, 0
    makers = {output: node for node in nodes for output in node.output}
    for attention in [node for node in nodes if node.op_type == "GroupQueryAttention"]:
        chain = []
        for kind in ("Split", "BranchwiseRMSNorm", "RotaryEmbedding", "Split"):
            made_by = makers.get((chain[-1] if chain else attention).input[0])
            if made_by is None or made_by.op_type != kind:
                break
            chain.append(made_by)
        else:
            _, norm, rotary, packed = chain
            weights = norm.input[1]
            inputs = [packed.input[0], "", "", *attention.input[3:7], *rotary.input[2:4]]
            inputs += [""] * 5 + [weights, weights]
            del attention.input[:]
            attention.input.extend(inputs)
            epsilon = next(each.f for each in norm.attribute if each.name == "epsilon")
            for name, value in {"do_rotary": 1, "rotary_interleaved": 1, "qk_norm_epsilon": epsilon}.items():
                attention.attribute.append(onnx.helper.make_attribute(name, value))
            for node in chain:
                nodes.remove(node)
            layers += 1
    if not layers:
        raise ValueError(f"{file}: no attention behind a rotation and a norm")
    onnx.save(model, file)
    return layers


def _keep_reference(checkpoint: Path, file: Path, device: str) -> None:
    decoder = open_decoder("pytorch", checkpoint=checkpoint, device=device)
    np.savez(file, **_logits(decoder))


def _try(trial: Trial, way: Variant, reference: Path, told: Path) -> None:
    os.environ.update(way.environment)
    result = Result(model=trial.model, variant=f"{way.precision} {way.name}")
    try:
        memory = MemoryMeter(trial.device)
        decoder = _open(trial, way)
        expected = np.load(reference)
        found = _logits(decoder)
        result.cosine = {name: _least_cosine(found[name], expected[name]) for name in found}
        logs = (log_softmax(each["prompt"]) for each in (expected, found))
        result.kl_divergence = float(kl_divergence(*logs).mean())
        result.providers = decoder.providers()
        told.write_text(result.model_dump_json())  # should the process die on what follows
        result.sweep = measure_sweep(decoder, _PLAN, memory)
        if trial.device == "cuda":
            result.kernels = {context: _kernels(decoder, context) for context in _PLAN.contexts}
    except Exception as error:
        result.refused = f"{type(error).__name__}: {error}"
    told.write_text(result.model_dump_json())


def _open(trial: Trial, way: Variant) -> Decoder:
    if way.graph is None:
        return open_decoder("pytorch", checkpoint=trial.checkpoint, dtype=way.precision, device=trial.device)
    graph = trial.scratch / f"{trial.model}-{way.graph}"
    return OrtDecoder(graph, available_cores(), trial.device, fixed_steps=way.captured)


def _logits(decoder: Decoder) -> dict[str, np.ndarray]:
    """Of a prompt, of the same tokens step by step, and of two rows one of which begins with padding."""
    random = np.random.default_rng(0)
    ids = random.integers(0, decoder.vocab_size, (2, _PROMPT + _STEPS))
    decoder.reset()
    prompt = decoder.forward(ids[:1])[0]
    decoder.reset()
    decoder.forward(ids[:1, :_PROMPT])
    steps = [decoder.forward(ids[:1, i : i + 1])[0, 0] for i in range(_PROMPT, _PROMPT + _STEPS)]
    mask = np.ones_like(ids)
    mask[0, : _PROMPT // 3] = 0
    decoder.reset()
    decoder.forward(ids[:, :_PROMPT], mask[:, :_PROMPT])
    rows = [
        decoder.forward(ids[:, i : i + 1], mask[:, : i + 1])[:, 0] for i in range(_PROMPT, _PROMPT + _STEPS)
    ]
    return {"prompt": prompt, "steps": np.stack(steps), "rows": np.concatenate(rows)}


def _least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Over the tokens; -1 where logits are no numbers."""
    pairs = ((found, expected), (found, found), (expected, expected))
    return float(cosine_of(np.stack([(a * b).sum(axis=-1, dtype=np.float64) for a, b in pairs])).min())


def _kernels(decoder: Decoder, context: int, steps: int = 4) -> list[Kernel]:
    """What a step runs on the GPU, by CUPTI, which sees other libraries' kernels than PyTorch's too."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    ids = np.random.default_rng(1).integers(0, decoder.vocab_size, (1, context))
    decoder.reset()
    decoder.forward(ids, logits_to_keep=1)
    for _ in range(2):
        decoder.forward(ids[:, :1], logits_to_keep=1)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            decoder.forward(ids[:, :1], logits_to_keep=1)
        torch.cuda.synchronize()
    runs: Counter[str] = Counter()
    times: defaultdict[str, float] = defaultdict(float)
    for event in seen.events():
        if str(event.device_type).endswith("CUDA"):
            runs[event.name] += 1
            times[event.name] += event.time_range.elapsed_us()
    longest = sorted(times, key=times.__getitem__, reverse=True)[:_MOST_KERNELS]
    return [Kernel(name=name, runs=runs[name] / steps, microseconds=times[name] / steps) for name in longest]


def _said(result: Result) -> str:
    if result.refused or not result.sweep:
        return f"{result.model} {result.variant}: {result.refused}"
    sweep = result.sweep
    return json.dumps(
        {
            "variant": f"{result.model} {result.variant}",
            "cosine": {name: round(value, 4) for name, value in result.cosine.items()},
            "kl": result.kl_divergence,
            "step ms": {context: round(ms, 3) for context, ms in sweep.decode_ms.items()},
            "prompt ms": {tokens: round(ms, 2) for tokens, ms in sweep.prefill_ms.items()},
            "tokens/s": {rows: round(speed) for rows, speed in sweep.throughput.items()},
            "GPU us": {
                context: round(sum(kernel.microseconds for kernel in kernels))
                for context, kernels in result.kernels.items()
            },
        }
    )


if __name__ == "__main__":
    sys.exit(main())
