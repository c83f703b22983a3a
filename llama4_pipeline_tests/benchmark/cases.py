"""What is measured: models, engines, and how much of each."""

from dataclasses import dataclass

from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.device import missing_stacks
from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.sweep import Plan
from llama4_pipeline.runtime.engines import find_engine

MAX_CONTEXT = 4096


@dataclass(frozen=True)
class Entry:
    """One row: an engine in one precision.

    Attributes:
        engine: a name in `runtime.engines.ENGINES`.
        precision: as `llama4-pipeline export`, `gguf` or, for a checkpoint, `bench --dtype` takes it.
        interleaved: measured in every round; what takes minutes to open in the first only.
        slow: takes a good part of a second for a token on the CPU, where it gets less to do.
    """

    engine: str
    precision: str
    interleaved: bool = False
    slow: bool = False

    @property
    def key(self) -> str:
        """Names the row."""
        return f"{self.engine} {self.precision}"

    @property
    def is_judged(self) -> bool:
        """Whether its quality is measured; what runs in another way has that of the same weights in the usual one."""
        rounded = self.precision in ("int8", "int4", "q8_0", "q4_0", "fp16")
        return rounded and self.engine not in ("onnxruntime-cuda-graph", "llama.cpp-no-flash-attention")

    def missing(self, device: str, has_experts: bool) -> str | None:
        """Why it is not measured on a device, for a model with or without experts."""
        engine = find_engine(self.engine)
        in_a_loop = has_experts and device == "cpu" and engine.runs == "checkpoint"
        return engine.missing(device) or (missing_stacks(self.precision) if in_a_loop else None)


@dataclass(frozen=True)
class Model:
    """One model of the catalog with random weights, and its rows."""

    name: str
    has_experts: bool
    layers: int | None
    entries: tuple[Entry, ...]
    plan: Plan

    @property
    def is_judged(self) -> bool:
        """Whether its quality is measured: a part of a model, too large for float32, is for speed alone."""
        return self.layers is None

    @property
    def title(self) -> str:
        """As the page names it."""
        return self.name if self.layers is None else f"{self.name}, {self.layers} layers"


_QUICK_PLAN = Plan(contexts=(16,), batches=(1,), new_tokens=8)
_ROOFLINE_PLAN = Plan(prefills=(), contexts=(16,), batches=(1,), new_tokens=16)

_CPU = (
    Entry("onnxruntime", "int4", interleaved=True),
    Entry("llama.cpp", "q4_0", interleaved=True),
    Entry("llama.cpp-no-flash-attention", "q4_0", interleaved=True),
    Entry("onnxruntime", "int8", interleaved=True),
    Entry("llama.cpp", "q8_0", interleaved=True),
    Entry("llama.cpp-no-flash-attention", "q8_0", interleaved=True),
    Entry("onnxruntime", "fp32", slow=True),
    Entry("pytorch", "bfloat16", interleaved=True, slow=True),
    Entry("pytorch", "float32", interleaved=True, slow=True),
    Entry("torch-compile", "bfloat16", slow=True),
    Entry("torch-compile", "float32", slow=True),
)
_DENSE = tuple(
    entry for entry in _CPU if entry.engine != "torch-compile"
)  # torch.compile is held against `mini`
_CUDA = (
    Entry("onnxruntime", "int4", interleaved=True),
    Entry("onnxruntime-cuda-graph", "int4", interleaved=True),
    Entry("onnxruntime", "int8", interleaved=True),
    Entry("onnxruntime", "fp16", interleaved=True),
    Entry("onnxruntime-cuda-graph", "fp16", interleaved=True),
    Entry("pytorch", "float16", interleaved=True),
    Entry("pytorch", "bfloat16", interleaved=True),
    Entry("torch-compile", "float16"),
    Entry("torch-compile", "bfloat16"),
    Entry("tensorrt-llm", "float16"),
)
_SUITES = {
    "cpu": {"mini": (None, _CPU), "mobilellm-r1-950m": (None, _DENSE), "scout": (4, _CPU[:1])},
    "cuda": {"mini": (None, _CUDA), "7b": (None, _CUDA), "scout": (16, _CUDA[:2])},
}


def find_models(names: tuple[str, ...], device: str, engines: tuple[str, ...] = ()) -> list[Model]:
    """The models to measure.

    Args:
        names: of the catalog; none asks for the suite of the device. Another name gets every row.
        device: "cpu" or "cuda".
        engines: whose rows alone are measured; none asks for all.

    Raises:
        InputError: a name that the catalog lacks, or no such engine.
    """
    suite, catalog = _SUITES[device], load_catalog()
    for engine in engines:
        find_engine(engine)
    models = []
    for name in names or tuple(suite):
        if name not in catalog:
            raise InputError(f"no model {name!r} in the catalog; it has {', '.join(catalog)}")
        layers, entries = suite.get(name, (None, _CUDA if device == "cuda" else _CPU))
        asked = tuple(entry for entry in entries if not engines or entry.engine in engines)
        architecture = catalog[name].architecture
        has_experts = architecture is not None and architecture.has_experts
        models.append(Model(name, has_experts, layers, asked, Plan() if layers is None else _ROOFLINE_PLAN))
    return models


def plan_of(model: Model, entry: Entry, device: str) -> Plan:
    """How much of a row is measured: slow rows get less on the CPU."""
    if device == "cuda":
        return model.plan.model_copy(update={"warm_up_lengths": True})
    return _QUICK_PLAN if entry.slow and model.plan == Plan() else model.plan
