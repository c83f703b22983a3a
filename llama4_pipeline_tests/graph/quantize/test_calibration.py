"""Statistics gathered layer by layer from the fused graph of a real model."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration, LayerByLayer
from llama4_pipeline.graph.quantize.segments import cut_by_layer
from llama4_pipeline.graph.quantize.weights import find_weights
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.graph.session import Session

LAST_MOE = "model.layers.3.feed_forward.experts"


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return Calibration(tuple(rng.integers(3, 131, length) for length in (16, 15, 9, 16, 14) * 3))


def test_a_graph_with_chunks_sees_each_by_itself(fused_graph: Path) -> None:
    cut = Calibration((np.arange(40), np.arange(7))).cut_for(load_graph(fused_graph))
    assert [sequence.tolist() for sequence in cut.sequences] == [
        [*range(16)],
        [*range(16, 32)],
        [*range(32, 40)],
        [*range(7)],
    ]


def test_a_graph_sees_no_more_than_its_context(fused_graph: Path) -> None:
    graph = load_graph(fused_graph)
    graph.metadata_props["llama4.max_context"] = "12"
    cut = Calibration((np.arange(30),)).cut_for(graph)
    assert [len(sequence) for sequence in cut.sequences] == [12, 12, 6]


def test_limit_spreads_over_all_sequences() -> None:
    calibration = Calibration(tuple(np.full(10, i) for i in range(100)))
    limited = calibration.limited(200).sequences
    assert len(limited) == 20
    assert limited[0][0] == 0
    assert limited[-1][0] == 99
    assert calibration.limited(5000) is calibration


def test_segments_hand_over_hidden_states_only(fused_graph: Path) -> None:
    graph = load_graph(fused_graph).graph
    segments = cut_by_layer(graph, find_weights(graph)[0])
    assert len(segments) == 6  # table, four layers, head
    assert all(1 <= len(segment.entering) <= 3 for segment in segments[1:])
    assert segments[-1].leaving == ()


def test_moments_are_those_of_the_whole_graph(
    checkpoint: Checkpoint, fused_graph: Path, calibration: Calibration
) -> None:
    """Without errors before it, a layer sees in pieces what it sees in the whole graph."""
    observed = LayerByLayer(fused_graph, load_graph(fused_graph).graph, fused_graph, calibration)
    model = onnx.load(fused_graph / "model.onnx", load_external_data=False)
    down = next(
        n for n in model.graph.node if "model.layers.3.feed_forward.shared_expert.down_proj.weight" in n.input
    )
    experts = next(n for n in model.graph.node if n.op_type == "MoE" and n.input[2].startswith(LAST_MOE))
    inputs = _values(fused_graph, model, [down.input[0], *experts.input[:2]], calibration)
    shared = np.concatenate([values[0].reshape(-1, values[0].shape[-1]) for values in inputs])
    statistics = observed.statistics("model.layers.3.feed_forward.shared_expert.down_proj.weight", 0)
    assert statistics is not None
    np.testing.assert_allclose(statistics.hessian, shared.T @ shared / len(shared), rtol=1e-3, atol=1e-5)
    tokens = np.concatenate([values[1].reshape(-1, values[1].shape[-1]) for values in inputs])
    chosen = np.concatenate([values[2].argmax(axis=-1).reshape(-1) for values in inputs])
    for expert in range(4):
        mine = tokens[chosen == expert]
        statistics = observed.statistics(f"{LAST_MOE}.gate_up_proj", expert)
        assert (statistics.tokens if statistics else 0) == len(mine)
        if statistics:
            np.testing.assert_allclose(statistics.hessian, mine.T @ mine / len(mine), rtol=1e-3, atol=1e-5)
            assert statistics.drift is not None
            np.testing.assert_array_equal(statistics.drift, 0)
            gate, up = np.split(mine @ checkpoint.weights.read(f"{LAST_MOE}.gate_up_proj")[expert], 2, axis=1)
            entering = gate / (1 + np.exp(-gate)) * up
            behind = observed.statistics(f"{LAST_MOE}.down_proj", expert)
            expected = entering.T @ entering / len(mine)
            np.testing.assert_allclose(behind.hessian, expected, rtol=1e-3, atol=1e-4)


def test_drift_is_from_the_rounded_graph_back_to_the_float_one(
    fused_graph: Path, calibration: Calibration, tmp_path: Path
) -> None:
    quantize_graph(fused_graph, tmp_path, precision="int4", method="rtn")
    observed = LayerByLayer(fused_graph, load_graph(tmp_path).graph, tmp_path, calibration)
    name = "model.layers.3.self_attn.qkv_proj.weight"
    statistics = observed.statistics(name, 0)
    assert statistics is not None and statistics.drift is not None
    models = [onnx.load(graph / "model.onnx", load_external_data=False) for graph in (fused_graph, tmp_path)]
    entering = next(node.input[0] for node in models[0].graph.node if name in node.input)
    y, x = (
        np.concatenate([values[0][0] for values in _values(graph, model, [entering], calibration)])
        for graph, model in zip((fused_graph, tmp_path), models, strict=True)
    )
    assert np.abs(y - x).mean() > 0.01
    np.testing.assert_allclose(statistics.drift, (y - x).T @ x / len(x), rtol=1e-3, atol=1e-4)
    for stack in (f"{LAST_MOE}.gate_up_proj", f"{LAST_MOE}.down_proj"):
        found = [observed.statistics(stack, expert) for expert in range(4)]
        drifts = [each.drift for each in found if each is not None and each.drift is not None]
        assert drifts and all(np.abs(drift).max() > 0 for drift in drifts)


def test_gptq_is_closer_than_rounding(fused_graph: Path, calibration: Calibration, tmp_path: Path) -> None:
    expected = _logits(fused_graph, calibration)
    errors = {}
    for method in ("rtn", "gptq"):
        long = Calibration(calibration.sequences * 10)  # enough tokens for most experts
        report = quantize_graph(
            fused_graph,
            tmp_path / method,
            precision="int4",
            method=method,
            calibration=long if method == "gptq" else None,
        )
        errors[method] = np.linalg.norm(_logits(tmp_path / method, calibration) - expected)
    assert errors["gptq"] < 0.95 * errors["rtn"]  # random weights amplify any error
    table = next(tensor for tensor in report.tensors if tensor.name == "model.embed_tokens.weight")
    assert table.fallbacks == {0: "k_quant: a table that is looked up"}


def test_starved_experts_are_named(
    fused_graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = Calibration((np.arange(3, 40),))
    report = quantize_graph(fused_graph, tmp_path, precision="int4", method="gptq", calibration=few)
    stacks = [tensor for tensor in report.tensors if ".experts." in tensor.name]
    for tensor in stacks:
        assert sum(tensor.tokens) == 37
        expected = {expert: f"k_quant: {count} tokens" for expert, count in enumerate(tensor.tokens)}
        assert tensor.fallbacks == expected
        for expert, count in enumerate(tensor.tokens):
            assert f"{tensor.name}, expert {expert} is starved: {count} calibration tokens" in caplog.text


def _logits(graph: Path, calibration: Calibration) -> np.ndarray:
    session = Session(graph)
    runs = (
        session.run(ids[None], np.ones_like(ids[None]), session.empty(1)) for ids in calibration.sequences
    )
    return np.concatenate([logits[0] for logits, _ in runs])


def _values(
    directory: Path, model: onnx.ModelProto, names: list[str], calibration: Calibration
) -> list[list[np.ndarray]]:
    """Inner values of the whole graph for each sequence."""
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = []
    for sequence in calibration.sequences:
        ids = sequence[None]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
        }
        for value in session.get_inputs():
            if value.name.startswith("past"):
                feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        results.append(session.run(names, feeds))
    return results
