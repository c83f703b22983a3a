"""ONNX Runtime as an engine: a graph directory, portable or fused, float or quantized."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from llama4_pipeline.errors import InputError
from llama4_pipeline.metadata import ANY_WIDTH_KEY, CHUNK_SIZE_KEY, MAX_CONTEXT_KEY, tokens_in
from llama4_pipeline.runtime.decoder import EMPTY_MASK, UNLIMITED, extend_mask, position_ids
from llama4_pipeline.runtime.fixed_steps import FixedSteps, not_captured
from llama4_pipeline.runtime.kv_cache import CacheTensor, KeyValueCache, ReboundTensors, SharedBuffers
from llama4_pipeline.runtime.ort_version import require_onnxruntime
from llama4_pipeline.runtime.out_of_memory import is_out_of_memory
from llama4_pipeline.runtime.runs import cut, need_cutting
from llama4_pipeline.runtime.step_buffers import StepBuffers

_logger = logging.getLogger(__name__)

# Tokens that the CPU reads at once: a longer prompt goes in parts, no slower, and its activations take less memory.
_LONGEST_RUN = 256
# A long cache makes the parts shorter: each head holds a score for every new token and slot of the cache, in all rows.
_MOST_SCORES = 256 * 2048
_SHORTEST_RUN = 32
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_FED = {"input_ids", "attention_mask", "position_ids", "logits_to_keep"}
_CACHE_DTYPES = _DTYPES | {"tensor(int8)": np.dtype(np.int8)}
# What the CUDA provider leaves to the CPU where it comes from Shape: GroupQueryAttention takes the length from there.
_ON_LENGTHS = {"Cast", "Min", "Neg", "Squeeze"}
_LOAD_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


class OrtDecoder:
    """Runs `model.onnx` of a graph directory; implements `Decoder`.

    Args:
        graph: the directory.
        threads: of one operator; 0 lets ONNX Runtime take one per physical core.
        device: "cpu" or "cuda".
        profile: where ONNX Runtime's profile goes, the start of a file name; `end_profile` gives the file.
        fixed_steps: whether decode steps keep one shape and one memory, so that CUDA replays them as a graph.

    Raises:
        InputError: no graph there, inputs that are not a decoder's, a device that this ONNX Runtime lacks, nodes that
            do not run on it and are no arithmetic on lengths, or steps whose shape cannot be fixed.
    """

    def __init__(
        self,
        graph: Path,
        threads: int = 0,
        device: str = "cpu",
        profile: Path | None = None,
        *,
        fixed_steps: bool = False,
    ) -> None:
        self.engine = "onnxruntime-cuda-graph" if fixed_steps else "onnxruntime"
        if fixed_steps:
            _require_any_width(graph)
        self._session = open_session(graph, threads, device, profile, capture=fixed_steps)
        self._device = device
        self._operators, self._providers = _assignment(self._session)
        if device != "cpu":
            _require_on_device(self._session, _PROVIDERS[device])
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._inputs |= {value.name for value in self._session.get_overridable_initializers()}
        self._fused = self._operators["com.microsoft.GroupQueryAttention"] > 0
        logits = self._session.get_outputs()[0]
        if logits.name != "logits" or not isinstance(logits.shape[2], int):
            raise InputError(
                f"{graph}: the first output is not logits [batch, sequence, vocabulary]; export it again"
            )
        self.vocab_size: int = logits.shape[2]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.max_context = tokens_in(metadata, MAX_CONTEXT_KEY) or UNLIMITED
        self._chunk_size = tokens_in(metadata, CHUNK_SIZE_KEY) or UNLIMITED
        tensors = _cache_tensors(self._session, graph, self.max_context, self._chunk_size)
        _require_a_decoders_values(self._session, graph, tensors)
        self._shared = SharedBuffers(tensors, device) if self._fused else None
        self._cache: KeyValueCache = self._shared or ReboundTensors(tensors, device)
        self._binding = self._session.io_binding()
        self._logits_dtype = _DTYPES[logits.type]
        self._buffers = StepBuffers(self._binding, self._logits_dtype, device)
        self._run_options = not_captured() if fixed_steps else None
        self._fixed_steps = fixed_steps
        self._steps: FixedSteps | None = None
        self.mask = EMPTY_MASK
        _logger.info("%s: %d nodes on %s", graph, sum(self._providers.values()), device)

    def reset(self) -> None:
        self._cache.clear()
        self.mask = EMPTY_MASK

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        mask = extend_mask(
            self.mask, input_ids, attention_mask, vocab_size=self.vocab_size, max_context=self.max_context
        )
        batch, new = input_ids.shape
        kept = min(logits_to_keep, new) if logits_to_keep else new
        try:
            slots = self._cache.reserve(batch, mask.shape[1])
            if new == 1 and self._fixed_steps:
                logits = self._step(input_ids, mask)
            elif self._fused and need_cutting(mask, new, self._longest_run(batch * slots), self._chunk_size):
                logits = self._run_by_row(input_ids, mask, kept, self._longest_run(slots))
            else:
                logits = self._run(input_ids, mask, kept)
        except BaseException as error:  # an interrupt too
            self.reset()
            if not is_out_of_memory(error):
                raise
            remedy = (
                "ask for fewer"
                if self._fused
                else "ask for fewer, or export the fused form, which reads in parts"
            )
            raise InputError(f"no memory for a run of {batch} rows of {new:,} tokens: {remedy}") from error
        self.mask = mask
        return logits

    def cache_bytes(self) -> int:
        return self._cache.nbytes()

    def providers(self) -> dict[str, int]:
        return dict(self._providers)

    def end_profile(self) -> Path:
        """Writes the profile; returns its file, the kernels' times in Chrome's trace format."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        del self._steps, self._buffers, self._binding, self._cache, self._shared, self._session

    def _step(self, input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """One token for each row, in the shape and the memory of the step before."""
        assert self._shared is not None
        if self._steps is None or self._steps.are_stale:
            self._steps = FixedSteps(
                self._session,
                self._shared,
                batch=len(mask),
                width=min(self._shared.capacity, self.max_context),
                vocab_size=self.vocab_size,
                logits_dtype=self._logits_dtype,
                device=self._device,
            )
        return self._steps.run(input_ids, mask)

    def _run(self, input_ids: np.ndarray, mask: np.ndarray, kept: int, row: int | None = None) -> np.ndarray:
        """One run of the session; returns float32 [B, kept, vocab]."""
        batch, new = input_ids.shape
        width = kept if "logits_to_keep" in self._inputs else new
        feeds = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids(mask, new),
            "logits_to_keep": np.array(kept),
        }
        for name in self._inputs & feeds.keys():
            self._buffers.feed(name, feeds[name])
        logits = self._buffers.logits((batch, width, self.vocab_size))
        self._cache.bind(self._binding, row)
        self._session.run_with_iobinding(self._binding, self._run_options)
        self._cache.collect(self._binding)
        return logits[:, width - kept :].astype(np.float32, copy=False)

    def _longest_run(self, slots: int) -> int:
        """Most new tokens of a row in one run, where the caches of all its rows have `slots` slots."""
        if self._device != "cpu":
            return UNLIMITED
        return max(min(_LONGEST_RUN, _MOST_SCORES // slots), _SHORTEST_RUN)

    def _run_by_row(self, input_ids: np.ndarray, mask: np.ndarray, kept: int, longest_run: int) -> np.ndarray:
        """Feeds the runs of each row by themselves (`runs.py`)."""
        batch, new = input_ids.shape
        past = mask.shape[1] - new
        logits = np.zeros((batch, kept, self.vocab_size), dtype=np.float32)
        for row in range(batch):
            for begin, end in cut(mask[row], new, longest_run, self._chunk_size):
                wanted = max(end - max(begin, new - kept), 1)
                part = self._run(
                    input_ids[row : row + 1, begin:end], mask[row : row + 1, : past + end], wanted, row
                )
                place = end - (new - kept)
                if place > 0:
                    logits[row, place - wanted : place] = part[0]
        return logits


def open_session(
    graph: Path,
    threads: int = 0,
    device: str = "cpu",
    profile: Path | None = None,
    *,
    capture: bool = False,
) -> Any:
    """Opens `model.onnx` of a graph directory with the options that decoding wants.

    Args:
        graph: the directory.
        threads: of one operator; 0 lets ONNX Runtime take one per physical core.
        device: "cpu" or "cuda".
        profile: start of the name of the profile's file; None takes no profile.
        capture: whether CUDA makes a graph of each run, unless its options say otherwise.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        InputError: no graph there or a broken one, an ONNX Runtime that is too old, or a device that it lacks.
    """
    require_onnxruntime()
    model = graph / "model.onnx"
    if not model.is_file():
        raise InputError(f"{model} does not exist; give a directory that `llama4-pipeline export` wrote")
    if device not in _PROVIDERS:
        raise InputError(f"device {device!r} is unknown; use one of {', '.join(_PROVIDERS)}")
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise InputError(
            f"this ONNX Runtime has no {provider}; install llama4-pipeline[gpu] in place of [cpu]"
        )
    if device == "cuda":
        import torch  # noqa: F401 - brings the CUDA libraries, which the provider then finds in this process
    try:
        provider_options = {"enable_cuda_graph": "1"} if capture and device == "cuda" else {}
        session = ort.InferenceSession(
            str(model), _session_options(threads, profile), providers=[(provider, provider_options)]
        )
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{model} does not load ({reason}); export it again") from error
    if provider not in session.get_providers():
        raise InputError(f"ONNX Runtime could not start {provider}; check the driver and the CUDA libraries")
    return session


def _session_options(threads: int, profile: Path | None) -> Any:
    options = ort.SessionOptions()
    # Below errors it says at each load that logits_to_keep can be overridden, which is what it is for.
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The mask grows with every token, so no plan of memory is used twice, yet each would be kept.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def _assignment(session: Any) -> tuple[Counter[str], Counter[str]]:
    """Counts nodes by operator and by the provider that runs them."""
    operators: Counter[str] = Counter()
    providers: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        providers[part.ep_name] += len(nodes)
        operators.update(f"{node.domain}.{node.op_type}" for node in nodes)
    return operators, providers


def _require_on_device(session: Any, provider: str) -> None:
    elsewhere = Counter(
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and (node.domain or node.op_type not in _ON_LENGTHS)
    )
    if elsewhere:
        listed = ", ".join(f"{count} {what}" for what, count in elsewhere.most_common(5))
        raise InputError(
            f"{sum(elsewhere.values())} nodes do not run on {provider}: {listed}; make one for it "
            "(`--precision fp16`, or int8 or int4 with `--device cuda`), or run this one with `--device cpu`"
        )


def _require_any_width(graph: Path) -> None:
    """Before the weights are read; no other session needs the package onnx."""
    import onnx

    model = graph / "model.onnx"
    if not model.is_file():
        return  # which `open_session` says
    metadata = {each.key for each in onnx.load(str(model), load_external_data=False).metadata_props}
    if ANY_WIDTH_KEY not in metadata:
        raise InputError(
            f"{graph}: the shape of its decode steps cannot be fixed for a CUDA graph; export it again in fused form, "
            "with a --max-context below the model's floor_scale, so that no temperature counts slots"
        )


def _require_a_decoders_values(session: Any, graph: Path, tensors: list[CacheTensor]) -> None:
    """Before the first run, which would name neither the graph nor what to do."""
    fed = _FED | {tensor.past for tensor in tensors}
    if strange := [value.name for value in session.get_inputs() if value.name not in fed]:
        raise InputError(
            f"{graph}: nothing feeds its input {strange[0]}; the inputs of a decoder are {', '.join(sorted(_FED))} "
            "and past_key_values"
        )
    outputs = {value.name for value in session.get_outputs()}
    if missing := [tensor.present for tensor in tensors if tensor.present not in outputs]:
        raise InputError(f"{graph}: it has no output {missing[0]}; export it again, with its cache")


def _cache_tensors(session: Any, graph: Path, max_context: int, chunk_size: int) -> list[CacheTensor]:
    tensors = []
    for value in session.get_inputs():
        if not value.name.startswith("past_key_values."):
            continue
        if value.type not in _CACHE_DTYPES or len(value.shape) != 4:
            raise InputError(
                f"{graph}: {value.name} is {value.type} {value.shape}; expected float or int8 [batch, heads, past, dim]"
            )
        heads, head_dim = value.shape[1], value.shape[3]
        if not isinstance(heads, int) or not isinstance(head_dim, int):
            raise InputError(f"{graph}: {value.name} has no fixed heads and head size; export it again")
        present = value.name.replace("past_key_values.", "present.")
        chunked = value.shape[2] == "chunk"
        if chunked and chunk_size == UNLIMITED:
            raise InputError(f"{graph}: {value.name} holds a chunk of unknown size; export it again")
        limit = chunk_size if chunked else max_context
        tensors.append(CacheTensor(value.name, present, heads, head_dim, limit, _CACHE_DTYPES[value.type]))
    if not tensors:
        raise InputError(f"{graph}: the graph has no key-value cache inputs; export it with its cache")
    return tensors
