from pathlib import Path

import pytest

from llama4_pipeline.graph.validate import validate_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline_tests.graph.validate.faults import FUSED, PORTABLE, Fault, planted

LAYER = 2  # MoE, RoPE in chunks of 16, behind a dense layer


@pytest.mark.parametrize("fault", PORTABLE, ids=lambda fault: fault.name)
def test_fault_in_portable_graph_is_located(
    fault: Fault, checkpoint: Checkpoint, portable_graph: Path, tmp_path: Path
) -> None:
    assert_located(fault, checkpoint, planted(portable_graph, tmp_path / "graph", fault, LAYER))


@pytest.mark.parametrize("fault", FUSED, ids=lambda fault: fault.name)
def test_fault_in_fused_graph_is_located(
    fault: Fault, checkpoint: Checkpoint, fused_graph: Path, tmp_path: Path
) -> None:
    assert_located(fault, checkpoint, planted(fused_graph, tmp_path / "graph", fault, LAYER))


def assert_located(fault: Fault, checkpoint: Checkpoint, graph: Path) -> None:
    report = validate_graph(checkpoint, graph, lengths=[40], batches=[1, 2], greedy_tokens=0, threads=1)

    assert not report.passed
    first = report.failures[0]
    assert (first.layer, first.block) == (LAYER, fault.block), str(first)
    assert (first.cause or "") == fault.cause, str(first)
    assert {failure.layer for failure in report.failures} == {LAYER}
    assert f"layer {LAYER} {fault.block}" in str(first)
    assert "length 40, batch 1, row 0, position" in str(first)
    if fault.block == "experts":
        assert first.expert in range(4)
