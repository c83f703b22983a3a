"""`bench`: one engine on one model, every figure of speed and memory in one record."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama4_pipeline.device import missing_cuda_build
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.machine import describe_machine
from llama4_pipeline.metrics.bandwidth import measure_read_bandwidth
from llama4_pipeline.metrics.latency import measure_decoder
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.metrics.memory import MemoryMeter
from llama4_pipeline.metrics.roofline import (
    StoredModel,
    cache_read_bytes,
    graph_architecture,
    roofline_share,
    stored_checkpoint,
    stored_gguf,
    stored_graph,
)
from llama4_pipeline.runtime.engines import (
    EngineUnavailable,
    available_cores,
    find_engine,
    open_decoder,
    require_engine,
)

_SHORT = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


def bench(
    *,
    engine: str,
    graph: Path | None = None,
    checkpoint: Path | str | None = None,
    model: str | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    batch: Sequence[int] = (1,),
    repeats: int = 3,
    threads: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> Measurement:
    """Measures one engine in this process.

    The peak of memory is that of the whole process until batch 1 is done; call it in a process of its own
    (`isolated.measure_isolated`) for a figure that compares.

    Args:
        engine: a name in `runtime.engines.ENGINES`.
        graph: graph directory, for "onnxruntime".
        checkpoint: checkpoint directory or hub id; a GGUF file for llama.cpp.
        model: name that the record carries; by default that of the directory.
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate, at least 2.
        batch: batch sizes for throughput.
        repeats: timed generations of each kind.
        threads: of one operator; 0 takes every core this process may use.
        dtype: for engines that run a checkpoint.
        device: "cpu" or "cuda".

    Raises:
        EngineUnavailable: the engine's library or device is missing.
        InputError: bad arguments or a bad model.
    """
    require_engine(engine, device)
    if device == "cuda" and (missing := missing_cuda_build("torch")):
        raise EngineUnavailable(f"{missing}, and the memory bandwidth of the GPU is measured with it")
    threads = threads or available_cores()
    memory = MemoryMeter(device)
    start = time.perf_counter()
    decoder = open_decoder(
        engine, graph=graph, checkpoint=checkpoint, dtype=dtype, threads=threads, device=device
    )
    load_seconds = time.perf_counter() - start
    if graph:
        graph_architecture(graph)  # one without its configuration is told of now, not behind the measurement
    latency = measure_decoder(
        decoder,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_sizes=batch,
        repeats=repeats,
        memory=memory,
    )
    providers = decoder.providers()
    decoder.close()
    bandwidth = measure_read_bandwidth(threads, device)
    path = graph or Path(str(checkpoint))
    facts = engine_facts(engine, path, dtype)
    step_ms = latency.decode_latency_ms.p50
    read = facts.bytes_per_token(prompt_tokens, new_tokens)
    return Measurement(
        model=model or path.absolute().name,
        engine=facts.title,
        precision=facts.precision,
        device=device,
        threads=threads,
        machine=describe_machine(bandwidth),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        load_seconds=load_seconds,
        time_to_first_token_ms=latency.time_to_first_token_ms,
        prefill_tokens_per_second=latency.prefill_tokens_per_second,
        decode_tokens_per_second=latency.decode_tokens_per_second,
        decode_latency_ms=latency.decode_latency_ms,
        sampling_latency_ms=latency.sampling_latency_ms,
        throughput=latency.throughput,
        model_bytes=facts.model_bytes,
        kv_cache_bytes=latency.cache_bytes,
        peak_memory_bytes=latency.peak_memory_bytes,
        active_bytes_per_token=read,
        roofline_share=None if read is None else roofline_share(read, bandwidth, step_ms),
        providers=providers,
    )


@dataclass(frozen=True)
class Facts:
    """What a row says about its model besides figures; a GGUF file of another's making tells its size and its name."""

    title: str
    precision: str
    model_bytes: int
    stored: StoredModel | None = None
    architecture: Architecture | None = None

    def bytes_per_token(self, prompt_tokens: int, new_tokens: int) -> int | None:
        if self.stored is None or self.architecture is None:
            return None
        element_bytes = self.stored.cache_element_bytes
        return self.stored.active_bytes + cache_read_bytes(
            self.architecture, prompt_tokens, new_tokens, element_bytes
        )


def engine_facts(engine: str, path: Path, dtype: str) -> Facts:
    """What is known of an engine's model before it is opened, from its directory or file alone."""
    title, runs = find_engine(engine).title, find_engine(engine).runs
    if runs == "gguf":
        if known := stored_gguf(path):
            stored, architecture = known
            size = path.stat().st_size
            return Facts(f"{title} {stored.precision}", stored.precision, size, stored, architecture)
        precision = path.stem.rsplit("-", 1)[-1]  # <name>-<size>-...-<encoding>.gguf
        return Facts(f"{title} {precision}", precision, path.stat().st_size)
    if runs == "graph":
        architecture, stored = graph_architecture(path), stored_graph(path)
        size = stored.weight_bytes
    else:
        checkpoint = Checkpoint.open(str(path))
        architecture, size = checkpoint.architecture, checkpoint.weight_bytes
        stored = stored_checkpoint(architecture, dtype)
    # Plain "PyTorch eager" is float32, as the table names it.
    plain = runs == "checkpoint" and stored.precision == "float32"
    label = title if plain else in_precision(title, stored.precision)
    return Facts(label, stored.precision, size, stored, architecture)


def in_precision(title: str, precision: str) -> str:
    """An engine's title with its precision, as "PyTorch eager BF16"."""
    return f"{title} {_SHORT.get(precision, precision.upper())}"
