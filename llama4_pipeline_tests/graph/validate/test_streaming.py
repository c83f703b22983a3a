"""Layer by layer finds what the whole finds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.validate import validate_graph
from llama4_pipeline.graph.validate.compare import Tolerance
from llama4_pipeline.graph.validate.streaming import validate_in_layers
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint


@pytest.mark.parametrize("form", ["portable_graph", "fused_graph"])
def test_a_sound_graph_passes_at_the_bounds_of_the_whole(
    form: str, checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    report = validate_in_layers(checkpoint, request.getfixturevalue(form), lengths=(1, 40), batches=(1, 3))

    assert report.passed, report.failures
    assert [row.layer for row in report.layers] == [0, 1, 2, 3, -1, -1]
    assert report.compared_tokens == 2 * (1 + 40) * (1 + 3)


def test_the_same_blocks_are_compared_as_in_the_whole(checkpoint: Checkpoint, fused_graph: Path) -> None:
    in_layers = validate_in_layers(checkpoint, fused_graph, lengths=(24,), batches=(1,))
    whole = validate_graph(checkpoint, fused_graph, lengths=(24,), batches=(1,), greedy_tokens=0)

    assert in_layers.passed and whole.passed
    assert {(row.layer, row.block) for row in in_layers.rows} == {
        (row.layer, row.block) for row in whole.rows
    }


def test_a_wrong_layer_is_named(checkpoint: Checkpoint, portable_graph: Path, tmp_path: Path) -> None:
    for file in portable_graph.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensor = load_graph(tmp_path).graph.initializers["model.layers.2.feed_forward.router.weight"].const_value
    data = np.memmap(tensor.path, np.float32, "r+", tensor.offset, (tensor.size,))
    data[:] = data[::-1].copy()
    data.flush()

    report = validate_in_layers(checkpoint, tmp_path, lengths=(9,), batches=(1,))

    assert not report.passed
    assert (report.failures[0].layer, report.failures[0].block) == (2, "router_logits")


@pytest.mark.parametrize(("context", "lengths"), [(1, (1,)), (8, (1, 8)), (64, (1, 33))])
def test_default_lengths_end_with_the_context(
    context: int, lengths: tuple[int, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export_in_one_stream(checkpoint, tmp_path, form="fused", precision="fp32", max_context=context)
    assert validate_in_layers(checkpoint, tmp_path).lengths == lengths


@pytest.mark.parametrize("validate", [validate_graph, validate_in_layers])
@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"lengths": (129,)}, "length 129: the graph holds 1 to 128 tokens"),
        ({"lengths": (0,)}, "length 0: the graph holds"),
        ({"batches": ()}, r"batches \[\]: give numbers of rows"),
        ({"batches": (1, 0)}, r"batches \[1, 0\]: give numbers of rows"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    validate: Callable[..., Any], sizes: dict[str, Any], says: str, checkpoint: Checkpoint, fused_graph: Path
) -> None:
    with pytest.raises(InputError, match=says):
        validate(checkpoint, fused_graph, **sizes)


def test_a_quantised_graph_is_measured(checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path) -> None:
    quantize_graph(fused_graph, tmp_path / "int8", precision="int8")

    report = validate_in_layers(checkpoint, tmp_path / "int8", lengths=(9,), batches=(1,))

    assert report.precision == "int8"
    assert report.layers[0].cosine > 0.99
    divergence = {row.block: row.kl_divergence for row in report.rows if row.kl_divergence is not None}
    assert list(divergence) == ["logits"] and 0 < divergence["logits"] < 0.02
    assert "KL divergence 0.02 nats; greedy text shown, not judged." in report.to_markdown()


def test_a_mistake_beside_the_rounding_is_seen(
    checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    """As a norm that was scaled by mistake, which loses fifteen times what eight bits do."""
    quantize_graph(fused_graph, tmp_path / "int8", precision="int8")
    model = onnx.load(tmp_path / "int8" / "model.onnx")
    norms = [each for each in model.graph.initializer if "layers.1" in each.name and "norm" in each.name]
    assert norms
    for norm in norms:
        norm.CopyFrom(onnx.numpy_helper.from_array(1.25 * onnx.numpy_helper.to_array(norm), norm.name))
    onnx.save(model, tmp_path / "int8" / "model.onnx")
    report = validate_in_layers(checkpoint, tmp_path / "int8", lengths=(65,), batches=(1,))
    assert not report.passed


def test_a_quantised_graph_for_cuda_is_measured(tmp_path: Path) -> None:
    """Its weights are quantized, its states and its cache float16."""
    wide = Checkpoint.open(write_random_checkpoint(tmp_path / "wide", hidden_size=64))
    export_in_one_stream(
        wide, tmp_path / "int8", form="fused", precision="int8", max_context=64, device="cuda"
    )

    report = validate_in_layers(wide, tmp_path / "int8", lengths=(9,), batches=(1, 2))

    assert report.precision == "int8"
    assert all(row.cosine > 0.99 for row in report.layers)


def test_a_graph_that_predicts_otherwise_is_refused(
    checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    quantize_graph(fused_graph, tmp_path / "int8", precision="int8")
    strict = Tolerance(np.inf, 0.0, np.inf, kl_divergence=1e-9, identical_greedy=False)
    report = validate_in_layers(checkpoint, tmp_path / "int8", lengths=(9,), batches=(1,), tolerance=strict)
    assert [failure.figure for failure in report.failures] == ["KL divergence"]


@pytest.mark.parametrize("validate", [validate_graph, validate_in_layers])
def test_a_graph_that_onnx_refuses_is_no_traceback(
    validate: Callable[..., Any], checkpoint: Checkpoint, portable_graph: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(portable_graph, tmp_path / "broken"))
    model = onnx.load(broken / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if not node.domain).op_type = "Nothing"
    onnx.save(model, broken / "model.onnx")
    with pytest.raises(InputError, match=r"broken: onnx\.checker refuses the graph \(.*Nothing"):
        validate(checkpoint, broken)
