import json
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import convert_to_float16
from llama4_pipeline.graph.external_data import load_graph, save_graph
from llama4_pipeline.graph.validate import ValidationReport, validate_graph
from llama4_pipeline.graph.validate.picture import draw_errors
from llama4_pipeline.llama4.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def report(checkpoint: Checkpoint, fused_graph: Path) -> ValidationReport:
    return validate_graph(
        checkpoint, fused_graph, lengths=[1, 17, 64], batches=[1, 3], greedy_tokens=24, threads=1
    )


def test_portable_graph_passes_the_default_sweep(checkpoint: Checkpoint, portable_graph: Path) -> None:
    found = validate_graph(checkpoint, portable_graph, batches=[1, 2], greedy_tokens=8, threads=1)

    assert found.passed, found.to_markdown()
    assert max(found.lengths) == 128


def test_fused_graph_passes(report: ValidationReport) -> None:
    assert report.passed, report.to_markdown()
    assert report.form == "fused" and report.precision == "float32"
    assert all(row.cosine > 0.99999 for row in report.layers)
    assert report.expert_change_share == 0


def test_every_layer_and_block_has_a_row(report: ValidationReport) -> None:
    assert [row.layer for row in report.layers] == [0, 1, 2, 3, -1, -1]
    assert {row.block for row in report.rows if row.layer == 2} >= {
        "attention",
        "router_logits",
        "experts",
        "output",
    }
    assert {row.block for row in report.rows if row.layer == 1}.isdisjoint({"router_logits", "experts"})
    assert [row.layer for row in report.routers] == [0, 2, 3]


def test_greedy_continuations_are_identical(report: ValidationReport) -> None:
    assert report.greedy
    assert all(row.identical == row.tokens == 24 or row.tie for row in report.greedy)
    assert {row.batch for row in report.greedy} == {1, 3}


def test_report_as_json_markdown_and_picture(report: ValidationReport) -> None:
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["passed"] is True
    assert len(plain["error_by_position"]["error"]) == len(report.layers)
    table = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report.layers)
    error_map = report.to_markdown().split("```")[1].strip().splitlines()
    assert [line.split("|")[0].strip() for line in error_map] == ["0", "1", "2", "3", "final norm", "logits"]
    assert {len(line.split("|")[1]) for line in error_map} == {64}
    assert draw_errors(report).startswith(b"\x89PNG")


def test_picture_has_every_position(report: ValidationReport) -> None:
    assert report.error_by_position.shape == (6, 64)
    assert not np.isnan(report.error_by_position).any()


def test_float16_graph_is_judged_by_mean_figures(
    checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    convert_to_float16(fused_graph, tmp_path / "half")

    found = validate_graph(
        checkpoint, tmp_path / "half", lengths=[40], batches=[1], greedy_tokens=4, threads=1
    )

    assert found.precision == "float16"
    assert all(row.kl_divergence is not None for row in found.layers if row.block != "final_norm")
    assert found.expert_change_share is not None
    assert not found.failures


def test_graph_without_the_inner_values_is_refused(
    checkpoint: Checkpoint, portable_graph: Path, tmp_path: Path
) -> None:
    model = load_graph(portable_graph)
    for node in model.graph:
        for output in node.outputs:
            if output.name == "layers.1.attention":
                output.name = "something"
    save_graph(model, tmp_path / "graph", share_weights=True)

    with pytest.raises(InputError, match=r"no value named layers\.1\.attention"):
        validate_graph(checkpoint, tmp_path / "graph", lengths=[4], batches=[1], greedy_tokens=0)


def test_batch_of_no_rows_is_refused(checkpoint: Checkpoint, portable_graph: Path) -> None:
    with pytest.raises(InputError, match="batches"):
        validate_graph(checkpoint, portable_graph, lengths=[4], batches=[0])
