"""PyTorch to ONNX: the portable graph, with dynamic axes, KV cache in and out, and streamed weights.

The tracing runs on fake tensors, so the export of a model of any size takes seconds and no memory for weights; these
flow afterwards from the checkpoint into the external data, tensor by tensor.
"""

import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from optimum.utils import DummyTextInputGenerator, GemmaDummyPastKeyValuesGenerator, NormalizedTextConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import save_graph
from llama4_pipeline.graph.functions import attach_functions
from llama4_pipeline.graph.packed_weights import graph_tensor
from llama4_pipeline.graph.probes import name_probes
from llama4_pipeline.graph.streamed_tensor import StreamedTensor
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.llama4.exportable import ExportableLlama4
from llama4_pipeline.llama4.weights import WeightSource
from llama4_pipeline.metadata import FORM_KEY, MAX_CONTEXT_KEY, MOST_TOKENS

OLDEST_OPSET = 18
_NEWEST_OPSET = 25  # that the exporter's version converter (onnxscript) reaches
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_ROPE_BY_LENGTH = ("dynamic", "longrope")
_STACK_TRACE = "pkg.torch.onnx.stack_trace"


@dataclass(frozen=True)
class ExportReport:
    """What the export made: the opset, the nodes of the graph by operator, its functions, weights and seconds."""

    opset: int
    nodes: dict[str, int]
    functions: tuple[str, ...]
    parameters: int
    weight_bytes: int
    trace_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


def export_graph(checkpoint: Checkpoint, out: Path, *, opset: int = 20, max_context: int) -> ExportReport:
    """Exports a checkpoint to a portable ONNX directory in float32.

    Args:
        checkpoint: an opened Llama 4 checkpoint.
        out: directory for `model.onnx`, its data and the tokenizer's files.
        opset: of the standard domain, 18 or higher.
        max_context: tokens (prompt and continuation) that the fused form of this graph will serve.

    Raises:
        InputError: the opset is too old or unknown to the exporter, the context is no number of tokens that the fused
            form can count, or the model has a part that cannot be exported.
    """
    start = time.monotonic()
    model, report = export_model(checkpoint, opset=opset, max_context=max_context)
    save_graph(model, out, share_weights=False)
    checkpoint.copy_sidecars(out)
    return replace(report, seconds=time.monotonic() - start)


def export_model(
    checkpoint: Checkpoint, *, opset: int = 20, max_context: int
) -> tuple[ir.Model, ExportReport]:
    """The portable graph in memory; its weights are read from the checkpoint when they are written.

    Raises:
        InputError: as `export_graph`.
    """
    start = time.monotonic()
    _check(checkpoint, opset, max_context)
    model = _trace(checkpoint, opset)
    traced = time.monotonic() - start
    name_probes(model, checkpoint.architecture)
    functions = attach_functions(model)
    _make_optional(model, "logits_to_keep", np.array(0, np.int64))
    model.graph.outputs[0].shape = ir.Shape(["batch", "kept", checkpoint.architecture.vocab_size])
    model.metadata_props.update({FORM_KEY: "portable", MAX_CONTEXT_KEY: str(max_context)})
    weights = [
        _weight(value, checkpoint.weights)
        for value in model.graph.initializers.values()
        if _is_parameter(value)
    ]
    report = ExportReport(
        opset=model.opset_imports[""],
        nodes=dict(Counter(node.op_type for node in model.graph).most_common()),
        functions=functions,
        parameters=sum(weight.size for weight in weights),
        weight_bytes=sum(weight.nbytes for weight in weights),
        trace_seconds=traced,
        seconds=time.monotonic() - start,
    )
    return model, report


def _check(checkpoint: Checkpoint, opset: int, max_context: int) -> None:
    config = checkpoint.config
    if opset < OLDEST_OPSET:
        raise InputError(f"opset {opset} is too old: Llama 4 needs opset {OLDEST_OPSET} or higher")
    if opset > _NEWEST_OPSET:
        raise InputError(f"opset {opset} is too new: the exporter knows opsets to {_NEWEST_OPSET}")
    if not 1 <= max_context <= MOST_TOKENS:
        raise InputError(f"max context {max_context}: give 1 to {MOST_TOKENS} tokens")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        why = "changes with the length of the text" if rope in _ROPE_BY_LENGTH else "is unknown"
        raise InputError(f"rope type {rope!r} {why}: supported are {', '.join(_STATIC_ROPE)}")


def _trace(checkpoint: Checkpoint, opset: int) -> ir.Model:
    architecture = checkpoint.architecture
    frequencies, scaling = checkpoint.rotary_frequencies()
    with FakeTensorMode(), torch.no_grad():
        model = ExportableLlama4(architecture, torch.empty(frequencies.shape), scaling).eval()
        inputs = _tracing_inputs(checkpoint.config)
        program = torch.onnx.export(
            model,
            kwargs=inputs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(len(architecture.layers)),
            input_names=_input_names(len(architecture.layers)),
            output_names=["logits", *_cache_names("present", len(architecture.layers))],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    if "model.inverse_frequencies" in graph.initializers:
        graph.initializers["model.inverse_frequencies"].const_value = ir.tensor(
            frequencies.numpy(), name="model.inverse_frequencies"
        )
    # It names files of this machine, so that elsewhere the same export had other bytes.
    for node in graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)
    return program.model


def _tracing_inputs(config: Any) -> dict[str, Any]:
    batch, new, past = 2, 3, 5
    size = {
        "normalized_config": NormalizedTextConfig.with_args(allow_new=True)(config),
        "batch_size": batch,
    }
    text = DummyTextInputGenerator("text-generation", sequence_length=new, **size)
    # Gemma's are those of grouped heads of a width of their own.
    caches = GemmaDummyPastKeyValuesGenerator("text-generation", sequence_length=past, **size)
    return {
        "input_ids": text.generate("input_ids", framework="pt"),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
        "position_ids": torch.arange(past, past + new).repeat(batch, 1),
        "past_key_values": caches.generate("past_key_values", framework="pt"),
        "logits_to_keep": torch.zeros((), dtype=torch.int64),
    }


def _dynamic_shapes(layers: int) -> dict[str, Any]:
    cache = {0: "batch", 2: "past_sequence"}
    return {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total_sequence"},
        "position_ids": {0: "batch", 1: "sequence"},
        "past_key_values": [(cache, cache) for _ in range(layers)],
        "logits_to_keep": {},
    }


def _input_names(layers: int) -> list[str]:
    return [
        "input_ids",
        "attention_mask",
        "position_ids",
        *_cache_names("past_key_values", layers),
        "logits_to_keep",
    ]


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]


def _is_parameter(value: ir.Value) -> bool:
    name = value.name or ""
    return bool(re.match(r"(model\.|lm_head\.)", name)) and not name.endswith("inverse_frequencies")


def _weight(value: ir.Value, source: WeightSource) -> StreamedTensor:
    """Fills an initializer from the checkpoint."""
    assert value.name is not None and value.shape is not None
    value.const_value = tensor = graph_tensor(value.name, tuple(value.shape.numpy()), source)
    return tensor


def _make_optional(model: ir.Model, name: str, default: np.ndarray) -> None:
    """An input that may be left out: it is an initializer too (onnx/docs/IR.md, overridable initializers)."""
    value = next(v for v in model.graph.inputs if v.name == name)
    value.const_value = ir.tensor(default, name=name)
    model.graph.initializers[name] = value
