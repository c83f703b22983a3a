import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnxscript import OnnxFunction

import llama4_pipeline
from llama4_pipeline.errors import InputError
from llama4_pipeline.graph import functions
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.external_data import load_graph, skeleton
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG
from llama4_pipeline_tests.graph.session import (
    Session,
    positions,
    random_ids,
    reference_logits,
    relative_error,
)

_CACHES = [f"past_key_values.{i}.{kind}" for i in range(4) for kind in ("key", "value")]


def test_graph_reads_like_the_model(portable_graph: Path) -> None:
    model = load_graph(portable_graph)

    layer = [node.op_type for node in model.graph if node.name and node.name.startswith("layers.0.")]
    operators = {node.op_type for node in model.graph if node.domain == "llama4"}
    assert len(list(model.graph)) < 60
    assert "SkipRMSNormalization" in layer and "MixtureOfExperts" in layer
    assert {"NormalizedRotaryAttention", "TemperedAttention", "SwiGLU", "ChunkedCausalBias"} <= operators


def test_functions_stand_behind_those_that_they_call(portable_graph: Path) -> None:
    names: list[str] = []
    for function in load_graph(portable_graph).functions.values():
        assert {node.op_type for node in function if node.domain == "llama4"} <= set(names)
        names.append(function.name)
    in_source = [name for name, value in vars(functions).items() if isinstance(value, OnnxFunction)]
    every_export_alike = [name for name in in_source if name in names]
    assert len(names) > 5 and names == every_export_alike


def test_reference_evaluator_of_onnx_computes_what_transformers_does(
    portable_graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    own = shutil.copytree(
        portable_graph, tmp_path / "own"
    )  # onnx refuses weights that other graphs have links to
    ids, mask = random_ids(checkpoint, 2, 20), np.ones((2, 20), np.int64)
    mask[1, :3] = 0
    past = {name: np.zeros((2, 2, 0, 16), np.float32) for name in _CACHES}
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask), **past}

    evaluator = ReferenceEvaluator(onnx.load(own / "model.onnx"))
    logits = evaluator.run(["logits"], feeds | {"logits_to_keep": np.array(0)})[0]

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_nothing_tells_where_the_package_is_installed(portable_graph: Path) -> None:
    written = (portable_graph / "model.onnx").read_bytes()
    assert str(Path(llama4_pipeline.__file__).parent).encode() not in written
    assert b'File "' not in written


def test_inputs_and_outputs_carry_the_names_of_optimum(portable_graph: Path) -> None:
    graph = load_graph(portable_graph).graph

    assert [value.name for value in graph.inputs] == [
        "input_ids", "attention_mask", "position_ids", *_CACHES, "logits_to_keep",
    ]  # fmt: skip
    assert [value.name for value in graph.outputs] == [
        "logits", *(name.replace("past_key_values", "present") for name in _CACHES),
    ]  # fmt: skip


@pytest.mark.parametrize("pieces", [[40], [17, 1, 1, 21], [1] * 40])
def test_left_padded_batch_in_pieces_equals_transformers(
    portable_graph: Path, checkpoint: Checkpoint, pieces: list[int]
) -> None:
    ids, mask = random_ids(checkpoint, 3, 40), np.ones((3, 40), np.int64)
    mask[1, :5] = mask[2, :19] = 0

    logits = Session(portable_graph).in_pieces(ids, mask, pieces)

    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_only_the_wanted_logits_are_computed(portable_graph: Path, checkpoint: Checkpoint) -> None:
    ids, mask = random_ids(checkpoint, 2, 9), np.ones((2, 9), np.int64)
    session = Session(portable_graph)

    every, _ = session.run(ids, mask, session.empty(2))
    last, _ = session.run(ids, mask, session.empty(2), keep=2)

    assert every.shape[1] == 9
    np.testing.assert_allclose(last, every[:, -2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [18, 23])
def test_opset_is_a_parameter(checkpoint: Checkpoint, tmp_path: Path, opset: int) -> None:
    report = export_graph(checkpoint, tmp_path / "graph", opset=opset, max_context=64)
    ids, mask = random_ids(checkpoint, 1, 20), np.ones((1, 20), np.int64)

    logits = Session(tmp_path / "graph").in_pieces(ids, mask, [20])

    assert report.opset == opset
    assert relative_error(logits, reference_logits(checkpoint, ids, mask), mask) < 1e-4


def test_graph_without_weights_is_sound_and_has_no_data_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    reports = export_in_one_stream(
        checkpoint,
        tmp_path / "graph",
        form="portable",
        precision="fp32",
        max_context=64,
        with_weights=False,
    )

    onnx.checker.check_model(skeleton(load_graph(tmp_path / "graph")), full_check=True)
    assert not (tmp_path / "graph" / "model.onnx.data").exists()
    assert reports["export"]["parameters"] == checkpoint.architecture.parameters()


@pytest.mark.parametrize("max_context", [0, 2**31, 10**30])
def test_a_context_that_nothing_counts_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, max_context: int
) -> None:
    with pytest.raises(InputError, match=f"max context {max_context}: give 1 to 2147483647 tokens"):
        export_graph(checkpoint, tmp_path / "graph", max_context=max_context)


def test_old_opset_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="opset 17 is too old"):
        export_graph(checkpoint, tmp_path / "graph", opset=17, max_context=64)
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize(
    ("rope_type", "values", "why"),
    [
        ("dynamic", {}, "changes with the length of the text"),
        (
            "longrope",
            {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            "changes with the length of the text",
        ),
        ("lama3", {}, "is unknown"),
    ],
)
def test_a_rotation_that_no_graph_holds_is_refused(
    tmp_path: Path, rope_type: str, values: dict, why: str
) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0} | values
    config = PECULIAR_CONFIG | {"rope_parameters": rope}
    write_synthetic_checkpoint(tmp_path / "checkpoint", config, seed=0, dtype="float32")
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    says = f"^rope type '{rope_type}' {why}: supported are default, linear, llama3, yarn$"
    with pytest.raises(InputError, match=says):
        export_graph(checkpoint, tmp_path / "graph", max_context=64)
    assert not (tmp_path / "graph").exists()
