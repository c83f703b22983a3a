"""The one record of a benchmark: what `bench` prints, what a row of the table shows."""

from pydantic import BaseModel, ConfigDict

from llama4_pipeline.machine import Machine


class Percentiles(BaseModel):
    """Milliseconds that 50, 90 and 99 percent of the tokens stay under."""

    model_config = ConfigDict(frozen=True)

    p50: float
    p90: float
    p99: float


class Measurement(BaseModel):
    """One engine on one model and one machine. None: not measured; `unavailable` says why a whole row is empty."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str | None = None
    """Name in the catalog, or of the directory."""
    engine: str
    """As a person reads it: "PyTorch eager", "ONNX Runtime INT4"."""
    precision: str
    """float32, float16, bfloat16, int8 or int4: how the weights are stored; of a GGUF file its own word, as Q8_0."""
    device: str
    threads: int
    machine: Machine
    unavailable: str | None = None
    """Why this engine could not be measured here."""
    short_of_memory_bytes: int | None = None
    """What its weights take, where they did not fit into the memory that was free and that is why."""

    prompt_tokens: int
    new_tokens: int
    repeats: int = 1

    load_seconds: float | None = None
    time_to_first_token_ms: float | None = None
    """Median at batch 1: prefill and the choice of the first token."""
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    """At batch 1, greedy, from the median step."""
    decode_latency_ms: Percentiles | None = None
    """Per token at batch 1, greedy."""
    sampling_latency_ms: Percentiles | None = None
    """Per token at batch 1 with temperature, top-k and top-p."""
    throughput: dict[int, float] = {}
    """Batch size -> generated tokens per second of all rows together, decode steps only."""

    model_bytes: int | None = None
    """Weights as stored."""
    kv_cache_bytes: int | None = None
    """Allocated at batch 1 after the last token."""
    peak_memory_bytes: int | None = None
    """Most memory the process held until batch 1 was done: resident set with children, or device memory on a GPU."""
    active_bytes_per_token: int | None = None
    """Weights and cache that one decoded token must read at batch 1."""
    roofline_share: float | None = None
    """Time to read those bytes at the machine's read bandwidth, over the median step."""
    providers: dict[str, int] = {}
    """Who ran the nodes: execution provider -> nodes."""

    perplexity: float | None = None
    perplexity_stderr: float | None = None
    kl_divergence: float | None = None
    kl_stderr: float | None = None
    top1_agreement: float | None = None
    top1_stderr: float | None = None
    expert_change_share: float | None = None
    """Share of (token, MoE layer) pairs that go to other experts than in PyTorch float32."""
    rouge1: float | None = None
    rouge1_stderr: float | None = None
    rouge2: float | None = None
    rouge2_stderr: float | None = None
    rougeL: float | None = None  # noqa: N815  the metric's name
    rougeL_stderr: float | None = None  # noqa: N815
    accuracy: float | None = None
    accuracy_stderr: float | None = None
