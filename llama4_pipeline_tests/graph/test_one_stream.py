"""One stream against stage after stage."""

from pathlib import Path
from typing import Literal

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.by_method import quantize
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.external_data import check_graph, load_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.simplify import simplify_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import spoil, write_random_checkpoint
from llama4_pipeline_tests.graph.conftest import MAX_CONTEXT
from llama4_pipeline_tests.graph.stored import stored_array


@pytest.fixture(scope="module")
def staged(portable_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 fused graph, simplified on the way."""
    root = tmp_path_factory.mktemp("staged")
    simplify_graph(portable_graph, root / "simplified")
    fuse_graph(root / "simplified", root / "fused")
    return root / "fused"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_bytes_are_those_of_the_stages(
    checkpoint: Checkpoint, staged: Path, tmp_path: Path, precision: Literal["fp32", "fp16", "int8", "int4"]
) -> None:
    expected = tmp_path / "staged"
    if precision == "fp32":
        expected = staged
    elif precision == "fp16":
        convert_to_float16(staged, expected)
    else:
        quantize_graph(staged, expected, precision=precision, method="rtn")

    export_in_one_stream(
        checkpoint,
        tmp_path / "stream",
        form="fused",
        precision=precision,
        max_context=MAX_CONTEXT,
        method="rtn" if precision.startswith("int") else None,
    )

    assert _tensors(tmp_path / "stream") == _tensors(expected)
    assert _nodes(tmp_path / "stream") == _nodes(expected)


def test_a_graph_for_cuda_has_the_bytes_of_the_stages(tmp_path: Path) -> None:
    wide = Checkpoint.open(write_random_checkpoint(tmp_path / "wide", hidden_size=64))
    whole, stages, stream = tmp_path / "whole", tmp_path / "stages", tmp_path / "stream"
    export_in_one_stream(wide, whole, form="fused", precision="fp32", max_context=MAX_CONTEXT)
    report = quantize(whole, stages, precision="int4", method="k_quant", device="cuda").to_json()
    reports = export_in_one_stream(
        wide,
        stream,
        form="fused",
        precision="int4",
        max_context=MAX_CONTEXT,
        method="k_quant",
        device="cuda",
    )
    assert _tensors(stream) == _tensors(stages)
    assert _nodes(stream) == _nodes(stages)
    stored = sum(len(content) for _, content in _tensors(stream).values())
    assert reports["quantize"]["bytes_after"] == report["bytes_after"] == stored


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_checkpoints_stream_as_their_float32_values(tmp_path: Path, dtype: str) -> None:
    narrow = Checkpoint.open(write_random_checkpoint(tmp_path / "narrow", dtype=dtype))
    wide = tmp_path / "wide"
    narrow.load_model("float32").save_pretrained(wide)
    for source, out in ((narrow, "a"), (Checkpoint.open(wide), "b")):
        export_in_one_stream(
            source, tmp_path / out, form="fused", precision="int4", max_context=64, method="rtn"
        )

    assert _tensors(tmp_path / "a") == _tensors(tmp_path / "b")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_graph_without_weights_is_sound_and_knows_their_places(
    checkpoint: Checkpoint, tmp_path: Path, precision: Literal["fp32", "int4"]
) -> None:
    for out, with_weights in (("with", True), ("without", False)):
        export_in_one_stream(
            checkpoint,
            tmp_path / out,
            form="fused",
            precision=precision,
            max_context=64,
            with_weights=with_weights,
        )

    graph = load_graph(tmp_path / "without")
    check_graph(graph)
    assert not (tmp_path / "without" / "model.onnx.data").exists()
    assert (tmp_path / "without" / "model.onnx").read_bytes() == (
        tmp_path / "with" / "model.onnx"
    ).read_bytes()


def test_a_method_that_needs_calibration_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gptq looks at activations"):
        export_in_one_stream(
            checkpoint, tmp_path, form="fused", precision="int4", max_context=64, method="gptq"
        )


@pytest.mark.parametrize(
    ("widths", "device", "message"),
    [
        (
            {"hidden_size": 40},
            "cpu",
            r"model\.embed_tokens\.weight: widths \[40\] are not all multiples of 16",
        ),
        ({"intermediate_size": 40}, "cpu", r"experts of layer 0: widths \[40, 48\] .* of 16"),
        ({}, "cuda", r"experts of layer 0: widths \[32, 48\] are not all multiples of 32, .* QMoE on CUDA"),
    ],
)
def test_a_width_without_blocks_is_refused_before_the_graph_is_made(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    widths: dict[str, int],
    device: Literal["cpu", "cuda"],
    message: str,
) -> None:
    source = Checkpoint.open(write_random_checkpoint(tmp_path / "odd", **widths))
    with caplog.at_level("INFO"), pytest.raises(InputError, match=message):
        export_in_one_stream(
            source, tmp_path / "out", form="fused", precision="int4", max_context=64, device=device
        )
    assert "export" not in caplog.messages


def test_a_table_too_small_to_be_quantized_may_have_any_width(tmp_path: Path) -> None:
    source = Checkpoint.open(
        write_random_checkpoint(tmp_path / "few", vocab_size=25, hidden_size=40, moe_layers=[])
    )
    export_in_one_stream(source, tmp_path / "out", form="fused", precision="int8", max_context=64)
    assert _tensors(tmp_path / "out")["model.embed_tokens.weight"][0] == "FLOAT"


def _tensors(graph: Path) -> dict[str | None, tuple[str, bytes]]:
    values = load_graph(graph).graph.initializers.values()
    return {value.name: (str(value.dtype), stored_array(value).tobytes()) for value in values}


def _nodes(graph: Path) -> list[tuple[str, str, list[str | None], dict[str, object]]]:
    return [
        (
            node.op_type,
            node.domain,
            [value.name if value else None for value in node.inputs],
            {name: attribute.value for name, attribute in node.attributes.items()},
        )
        for node in load_graph(graph).graph
    ]


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("layers.0.feed_forward.experts.down_proj", "down_proj"),
        ("layers.1.self_attn.k_proj.weight", "qkv_proj.weight"),
        ("norm.weight", "model.norm.weight"),
    ],
)
@pytest.mark.parametrize("form", ["portable", "fused"])
def test_weights_that_are_no_numbers_are_refused(
    form: Literal["portable", "fused"], stored: str, named: str, tmp_path: Path
) -> None:
    directory = write_random_checkpoint(tmp_path / "checkpoint")
    spoil(directory, f"model.{stored}")
    with pytest.raises(InputError, match=f"{named} has weights that are not finite: take a sound copy"):
        export_in_one_stream(
            Checkpoint.open(directory), tmp_path / "out", form=form, precision="fp32", max_context=64
        )
