"""Made-up measurements: figures that no engine gave, to see how tables and plots treat them."""

import pytest

from llama4_pipeline.machine import Machine
from llama4_pipeline.metrics.measurement import Measurement, Percentiles

_MACHINE = Machine(
    cpu="Imaginary CPU 9000",
    cores=2,
    memory_bytes=24_000_000_000,
    gpu=None,
    system="Linux x86_64, Python 3.11.7",
    libraries={"torch": "2.13.0", "onnxruntime": "1.32.0"},
    read_bandwidth_bytes_per_second=64e9,
)


def invent(engine: str, precision: str, milliseconds: float, size: int, **figures) -> Measurement:
    """A complete row whose figures follow from one time and one size."""
    return Measurement(
        **{
            "model": "tiny",
            "engine": engine,
            "precision": precision,
            "device": "cpu",
            "threads": 2,
            "machine": _MACHINE,
            "prompt_tokens": 128,
            "new_tokens": 64,
            "repeats": 3,
            "load_seconds": 0.41,
            "time_to_first_token_ms": 9 * milliseconds,
            "prefill_tokens_per_second": 14_000 / milliseconds,
            "decode_tokens_per_second": 1000 / milliseconds,
            "decode_latency_ms": Percentiles(p50=milliseconds, p90=1.2 * milliseconds, p99=1.9 * milliseconds),
            "sampling_latency_ms": Percentiles(
                p50=1.1 * milliseconds, p90=1.4 * milliseconds, p99=2.2 * milliseconds
            ),
            "throughput": {batch: 1000 * batch**0.68 / milliseconds for batch in (1, 2, 4, 8)},
            "model_bytes": size,
            "kv_cache_bytes": 6_300_000,
            "peak_memory_bytes": 3 * size // 2 + 180_000_000,
            "active_bytes_per_token": size // 2,
            "roofline_share": 0.313,
            "providers": {"CPUExecutionProvider": 390},
            "perplexity": 21.4,
            "perplexity_stderr": 0.31,
            "kl_divergence": 0.0123,
            "top1_agreement": 0.934,
            "rouge1": 0.412,
            "rouge2": 0.203,
            "rougeL": 0.389,
            "accuracy": 0.875,
        }
        | figures
    )  # fmt: skip


@pytest.fixture
def measurements() -> list[Measurement]:
    """PyTorch, three precisions of ONNX Runtime, and an engine that could not be measured."""
    no_divergence = {"kl_divergence": None, "top1_agreement": None}
    missing = Measurement(
        model="tiny",
        engine="TensorRT-LLM",
        precision="float16",
        device="cuda",
        threads=2,
        machine=_MACHINE,
        unavailable="tensorrt_llm is not installed; it needs an NVIDIA GPU",
        prompt_tokens=128,
        new_tokens=64,
    )
    return [
        invent("PyTorch eager", "float32", 150.0, 480_000_000, providers={"PyTorch": 0}, **no_divergence),
        invent("ONNX Runtime FP32", "float32", 31.0, 470_000_000, kl_divergence=3e-11, top1_agreement=1.0),
        invent("ONNX Runtime INT8", "int8", 11.2, 126_000_000, kl_divergence=0.0004, top1_agreement=0.991),
        invent("ONNX Runtime INT4", "int4", 7.14, 73_000_000),
        missing,
    ]
