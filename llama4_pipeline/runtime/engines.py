"""The engines by name: what each runs, what it needs, how it opens. Importing this imports none of them."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama4_pipeline.device import first_gpu, missing_cuda_build, missing_stacks
from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.ort_version import require_onnxruntime

DEVICES = ("cpu", "cuda")
_logger = logging.getLogger(__name__)


class EngineUnavailable(InputError):  # noqa: N818  a state, named as the table shows it
    """An engine cannot run here; the message names the reason and the remedy."""


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        title: As the table names it.
        runs: What it opens: a graph directory, a checkpoint directory, or a GGUF file (given as the checkpoint).
        open: Opens the engine: (path, dtype, threads, device) -> Decoder.
        missing: (device) -> why it cannot run here and what to do, or None. Loads none of its libraries.
    """

    title: str
    runs: Literal["graph", "checkpoint", "gguf"]
    open: Callable[[Path | str, str, int, str], Decoder]
    missing: Callable[[str], str | None]


def open_decoder(
    engine: str,
    *,
    graph: Path | None = None,
    checkpoint: Path | str | None = None,
    dtype: str = "float32",
    threads: int = 0,
    device: str = "cpu",
) -> Decoder:
    """Opens an engine on a graph or a checkpoint.

    Args:
        engine: a name in `ENGINES`.
        graph: graph directory, for "onnxruntime", whose graph fixes the precision.
        checkpoint: checkpoint directory or hub id; a GGUF file for llama.cpp.
        dtype: "float32", "bfloat16" or "float16", for engines that run a checkpoint directory.
        threads: of one operator; 0 takes every core this process may use.
        device: "cpu" or "cuda".

    Raises:
        EngineUnavailable: the library or the device is missing.
        InputError: an unknown engine or device, or not what it runs.
    """
    chosen = require_engine(engine, device)
    path = graph if chosen.runs == "graph" else checkpoint
    if path is None or (graph is not None and checkpoint is not None):
        raise InputError(f"engine {engine} runs a {chosen.runs}; give that alone")
    return chosen.open(path, dtype, threads or available_cores(), device)


def require_engine(name: str, device: str) -> Engine:
    """An engine that can run here; for Raises see `open_decoder`."""
    engine = find_engine(name)
    if device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; use one of {', '.join(DEVICES)}")
    if reason := engine.missing(device):
        raise EngineUnavailable(f"{engine.title} cannot run here: {reason}")
    return engine


def find_engine(name: str) -> Engine:
    """Looks an engine up by name.

    Raises:
        InputError: no such engine; the message lists them.
    """
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is unknown; use one of {', '.join(ENGINES)}")
    return ENGINES[name]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _open_pytorch(
    checkpoint: Path | str, dtype: str, threads: int, device: str, *, compiled: bool = False
) -> Decoder:
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.runtime.pytorch import PyTorchDecoder

    opened = Checkpoint.open(checkpoint)
    if device == "cpu" and opened.architecture.has_experts and (slow := missing_stacks(dtype)):
        _logger.warning("%s", slow)
    return PyTorchDecoder(opened, dtype, threads, device, compiled=compiled)


def _open_compiled(checkpoint: Path | str, dtype: str, threads: int, device: str) -> Decoder:
    return _open_pytorch(checkpoint, dtype, threads, device, compiled=True)


def _open_onnxruntime(
    graph: Path | str, _dtype: str, threads: int, device: str, *, fixed_steps: bool = False
) -> Decoder:
    from llama4_pipeline.runtime.ort import OrtDecoder

    return OrtDecoder(Path(graph), threads, device, fixed_steps=fixed_steps)


def _open_onnxruntime_cuda_graph(graph: Path | str, dtype: str, threads: int, device: str) -> Decoder:
    return _open_onnxruntime(graph, dtype, threads, device, fixed_steps=True)


def _open_llamacpp(
    gguf: Path | str, _dtype: str, threads: int, _device: str, *, flash_attention: bool = True
) -> Decoder:
    from llama4_pipeline.runtime.llamacpp import LlamaCppDecoder

    return LlamaCppDecoder(Path(gguf), threads, flash_attention=flash_attention)


def _open_llamacpp_no_flash_attention(gguf: Path | str, dtype: str, threads: int, device: str) -> Decoder:
    return _open_llamacpp(gguf, dtype, threads, device, flash_attention=False)


def _open_tensorrt_llm(checkpoint: Path | str, dtype: str, _threads: int, _device: str) -> Decoder:
    from llama4_pipeline.llama4.checkpoint import Checkpoint
    from llama4_pipeline.runtime.tensorrt_llm import TensorRtLlmDecoder

    return TensorRtLlmDecoder(Checkpoint.open(checkpoint), dtype)


def _cuda_missing(*libraries: str) -> str | None:
    """Why the libraries cannot run on a GPU here: there is none with a driver, or they are no builds for one."""
    if first_gpu() is None:
        return "no NVIDIA GPU with a driver was found; use a machine with one"
    missing = missing_cuda_build(*libraries)
    return missing and f"{missing}; make setup EXTRAS=gpu,dev installs what runs on one"


def _pytorch_missing(device: str) -> str | None:
    return _cuda_missing("torch") if device == "cuda" else None


def _compile_missing(device: str) -> str | None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "torch.compile needs a C++ compiler; install g++"
    return _pytorch_missing(device)


def _onnxruntime_missing(device: str) -> str | None:
    try:
        require_onnxruntime()
    except InputError as error:
        return str(error)
    return _cuda_missing("onnxruntime-gpu") if device == "cuda" else None


def _onnxruntime_cuda_graph_missing(device: str) -> str | None:
    if device != "cuda":
        return "it replays steps on CUDA only; use --device cuda"
    return _onnxruntime_missing(device)


def _llamacpp_missing(device: str) -> str | None:
    if device != "cpu":
        return "it is measured on the CPU only; use --device cpu"
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed; pip install 'llama4-pipeline[llamacpp]'"
    return None


def _tensorrt_llm_missing(device: str) -> str | None:
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "tensorrt_llm is not installed; pip install tensorrt-llm on a Linux machine with an NVIDIA GPU"
    if device != "cuda":
        return "it runs on CUDA only; use --device cuda"
    return _cuda_missing("torch")


ENGINES: Mapping[str, Engine] = {
    "pytorch": Engine("PyTorch eager", "checkpoint", _open_pytorch, _pytorch_missing),
    "torch-compile": Engine("PyTorch compiled", "checkpoint", _open_compiled, _compile_missing),
    "onnxruntime": Engine("ONNX Runtime", "graph", _open_onnxruntime, _onnxruntime_missing),
    "onnxruntime-cuda-graph": Engine(
        "ONNX Runtime CUDA graph", "graph", _open_onnxruntime_cuda_graph, _onnxruntime_cuda_graph_missing
    ),
    "llama.cpp": Engine("llama.cpp", "gguf", _open_llamacpp, _llamacpp_missing),
    "llama.cpp-no-flash-attention": Engine(
        "llama.cpp without flash attention", "gguf", _open_llamacpp_no_flash_attention, _llamacpp_missing
    ),
    "tensorrt-llm": Engine("TensorRT-LLM", "checkpoint", _open_tensorrt_llm, _tensorrt_llm_missing),
}
