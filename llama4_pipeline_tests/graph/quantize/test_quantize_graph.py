"""A whole graph: what is rewritten, what stays, how close it comes, how large it is."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import initializer_bytes, load_graph, save_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import METHODS, Precision, quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.methods import METHODS as TERMS
from llama4_pipeline.metrics.roofline import stored_graph
from llama4_pipeline.runtime.ort import OrtDecoder
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.graph.quantize.toy_graph import Toy, logits, operators

IDS = np.arange(0, 80, 3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", [name for name in METHODS if not TERMS[name].needs_text])
@pytest.mark.parametrize(
    ("precision", "error", "size", "rounding"),
    # Of 96 normal weights the largest is near 2.6 sigma.
    [("int8", 0.03, 0.29, 0.01), ("int4", 0.25, 0.17, 0.11)],
)
def test_every_large_weight_is_quantised(
    tmp_path: Path, tied: bool, method: str, precision: Precision, error: float, size: float, rounding: float
) -> None:
    graph = Toy(tied=tied).write(tmp_path / "float")
    report = quantize_graph(graph, tmp_path / "out", precision=precision, method=method)
    assert operators(tmp_path / "out") == [
        *("Reshape", "GatherBlockQuantized", "MatMulNBits", "Mul", "MatMul", "QMoE", "Add", "MatMulNBits")
    ]
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    expected = logits(graph, IDS)
    difference = logits(tmp_path / "out", IDS) - expected
    assert np.linalg.norm(difference) < error * np.linalg.norm(expected)
    # The table, for a head of its own.
    copied = 4 * Toy.vocab * Toy.hidden if tied and precision == "int4" else 0
    assert report.bytes_after < size * (report.bytes_before + copied)
    assert set(report.stayed_float) == {"model.norm.weight", "model.layers.0.feed_forward.router.weight"}
    assert all(0 < share < rounding for tensor in report.tensors for share in tensor.relative_error)


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_keeps_8_bits_and_experts_and_head_take_the_largest_blocks(
    tmp_path: Path, tied: bool
) -> None:
    graph = Toy(tied=tied, hidden=256, intermediate=256).write(tmp_path / "float")
    report = quantize_graph(graph, tmp_path / "out", precision="int4")
    stored = {tensor.name: (tensor.bits, tensor.block_size) for tensor in report.tensors}
    assert stored == {
        "model.embed_tokens.weight": (8, 32),
        "model.layers.0.self_attn.qkv_proj.weight": (4, 128),
        "model.layers.0.experts.gate_up_proj": (4, 256),
        "model.layers.0.experts.down_proj": (4, 256),
        "lm_head.weight": (4, 256),
    }
    alike = quantize_graph(graph, tmp_path / "alike", precision="int4", block_size=32)
    assert {(tensor.bits, tensor.block_size) for tensor in alike.tensors} == {(4, 32)}
    # Where all have one scheme, a head of its own would hold the same codes again.
    assert stored.keys() - {tensor.name for tensor in alike.tensors} == (
        {"lm_head.weight"} if tied else set()
    )


@pytest.mark.parametrize(("moe_layers", "blocks"), [([], (64, 32)), ([0, 1, 2, 3], (128, 128))])
def test_attention_gets_small_blocks_where_there_are_no_experts(
    tmp_path: Path, moe_layers: list[int], blocks: tuple[int, int]
) -> None:
    checkpoint = Checkpoint.open(
        write_random_checkpoint(tmp_path / "checkpoint", hidden_size=256, head_dim=64, moe_layers=moe_layers)
    )
    reports = export_in_one_stream(
        checkpoint, tmp_path / "out", form="fused", precision="int4", max_context=64, with_weights=False
    )
    found = {tensor["name"]: tensor["block_size"] for tensor in reports["quantize"]["tensors"]}
    attention = "model.layers.0.self_attn"
    assert (found[f"{attention}.qkv_proj.weight"], found[f"{attention}.o_proj.weight"]) == blocks


def test_report_counts_the_bytes_on_disk(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "float")
    report = quantize_graph(graph, tmp_path / "out", precision="int4")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    stored = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    for tensor in report.tensors:
        parts = [size for name, size in stored.items() if name.rpartition(".")[0] == tensor.name]
        assert sum(parts) - (16 if "embed" in tensor.name else 0) == tensor.bytes_after
    assert sum(stored.values()) == report.bytes_after
    assert report.to_json()["tensors"][0]["name"] == "model.embed_tokens.weight"


def test_tied_head_and_table_share_their_bytes(tmp_path: Path) -> None:
    graph = Toy(tied=True).write(tmp_path / "float")
    quantize_graph(graph, tmp_path / "out", precision="int8")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    tables = [
        tensor.name for tensor in model.graph.initializer if "embed" in tensor.name and "codes" in tensor.name
    ]
    assert len(tables) == 1


def test_sidecars_travel(tmp_path: Path) -> None:
    quantize_graph(Toy().write(tmp_path / "float"), tmp_path / "out", precision="int8")
    assert (tmp_path / "out" / "config.json").is_file()


def test_float16_graph_keeps_float16_activations(tmp_path: Path) -> None:
    graph = Toy(half=True).write(tmp_path / "half")
    quantize_graph(graph, tmp_path / "out", precision="int8")
    expected = logits(Toy().write(tmp_path / "float"), IDS)
    result = logits(tmp_path / "out", IDS)
    assert result.dtype == np.float16
    assert np.linalg.norm(result - expected) < 0.03 * np.linalg.norm(expected)


def test_width_that_no_block_divides_is_refused(tmp_path: Path) -> None:
    graph = Toy(intermediate=72).write(tmp_path / "float")
    with pytest.raises(InputError, match=r"gate_up_proj: widths \[72, 96\] are not all multiples of 16"):
        quantize_graph(graph, tmp_path / "out", precision="int4")


def test_unknown_names_list_the_known(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "float")
    with pytest.raises(InputError, match="unknown method 'awq': choose one of rtn, k_quant"):
        quantize_graph(graph, tmp_path / "out", precision="int4", method="awq")


def test_weight_without_quantised_form_is_named(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "float")
    model = onnx.load(graph / "model.onnx")
    model.graph.node[1].op_type = "Gemm"
    onnx.save(model, graph / "model.onnx")
    with pytest.raises(InputError, match=r"qkv_proj.weight \[96, 96\] feeds Gemm"):
        quantize_graph(graph, tmp_path / "out", precision="int4")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_expert_of_a_token_finds_packed_weights(
    tmp_path: Path, precision: Precision, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime says on standard error where a node has to compute with float weights."""
    directory = write_random_checkpoint(
        tmp_path / "checkpoint", hidden_size=64, intermediate_size=64, num_experts_per_tok=2
    )
    out = tmp_path / "out"
    reports = export_in_one_stream(
        Checkpoint.open(directory), out, form="fused", precision=precision, max_context=64
    )
    OrtDecoder(out, threads=1).forward(np.array([[1, 2, 3]]))
    assert "falling back" not in capfd.readouterr().err
    stored = reports["quantize"]["bytes_after"]
    assert stored == initializer_bytes(load_graph(out).graph) == stored_graph(out).weight_bytes
    save_graph(load_graph(out), tmp_path / "again", share_weights=False)
    data = [directory / "model.onnx.data" for directory in (out, tmp_path / "again")]
    assert data[0].read_bytes() == data[1].read_bytes()
    assert stored < sum(file.stat().st_size for file in out.glob("model.onnx*")) < 1.5 * stored


def test_two_experts_a_token_are_quantised_once(tmp_path: Path) -> None:
    """Both nodes of a layer read the same codes, while the layers behind it are still calibrated."""
    directory = write_random_checkpoint(tmp_path / "checkpoint", num_experts_per_tok=2)
    graph = tmp_path / "float"
    export_in_one_stream(Checkpoint.open(directory), graph, form="fused", precision="fp32", max_context=64)
    texts = Calibration(tuple(np.random.default_rng(0).integers(3, 131, (20, 40))))
    report = quantize_graph(graph, tmp_path / "out", precision="int4", method="gptq", calibration=texts)
    seen = {len(tensor.tokens) for tensor in report.tensors if ".experts." in tensor.name}
    assert seen == {4}


def test_small_experts_are_quantised_with_their_large_partners(tmp_path: Path) -> None:
    directory = write_random_checkpoint(
        tmp_path / "checkpoint", hidden_size=16, intermediate_size=32, num_local_experts=1
    )
    report = export_in_one_stream(
        Checkpoint.open(directory), tmp_path / "out", form="fused", precision="int4", max_context=64
    )
    stored = {tensor["name"].rpartition(".")[2] for tensor in report["quantize"]["tensors"]}
    assert {"gate_up_proj", "down_proj"} <= stored


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "float")
    model = load_graph(graph)
    weight = model.graph.initializers["model.layers.0.self_attn.qkv_proj.weight"]
    assert weight.const_value is not None
    spoiled = weight.const_value.numpy().copy()
    spoiled[3, 5] = np.nan
    weight.const_value = ir.tensor(spoiled)
    save_graph(model, tmp_path / "spoiled", share_weights=False)
    with pytest.raises(InputError, match=r"self_attn.qkv_proj.weight has weights that are not finite"):
        quantize_graph(tmp_path / "spoiled", tmp_path / "out", precision="int4", method="rtn")


def _with_experts_times(factor: float, directory: Path) -> Checkpoint:
    write_random_checkpoint(directory, hidden_size=64, intermediate_size=64)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.feed_forward.experts.down_proj"] *= factor
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(directory)


@pytest.mark.parametrize(("precision", "method"), [("int8", "rtn"), ("int4", "rtn"), ("int4", "k_quant")])
def test_experts_whose_scale_float16_cannot_hold_are_refused(
    tmp_path: Path, precision: Literal["int8", "int4"], method: str
) -> None:
    checkpoint = _with_experts_times(1e7, tmp_path / "checkpoint")
    with pytest.raises(
        InputError, match=r"experts.down_proj holds .*e\+0., whose scale in . bits is beyond float16"
    ):
        export_in_one_stream(
            checkpoint, tmp_path / "out", form="fused", precision=precision, method=method, max_context=64
        )


def test_experts_that_rounding_takes_whole_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = _with_experts_times(1e-6, tmp_path / "checkpoint")
    with caplog.at_level("WARNING", "llama4_pipeline"):
        export_in_one_stream(
            checkpoint, tmp_path / "out", form="fused", precision="int8", method="rtn", max_context=64
        )
    assert "layers.0.feed_forward.experts.down_proj: rounding takes most of expert 0, 1, 2, 3" in caplog.text


def test_a_graph_of_another_s_making_is_refused(tmp_path: Path) -> None:
    graph = Toy().write(tmp_path / "toy")
    model = load_graph(graph)
    model.metadata_props.clear()
    save_graph(model, tmp_path / "other", share_weights=True)
    with pytest.raises(InputError, match=r"other holds no graph of this pipeline: give a graph written by"):
        quantize_graph(tmp_path / "other", tmp_path / "out", precision="int4", method="rtn")
