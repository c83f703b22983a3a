"""The gate, with a graph that really does not match its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline_tests.assets.conftest import Materialize, materialized, metadata_of


def checks(result: dg.ExecuteInProcessResult) -> list[tuple[str, bool]]:
    return [(each.asset_key.path[-1], each.passed) for each in result.get_asset_check_evaluations()]


def test_a_graph_that_matches_passes_and_one_that_does_not_is_held_back(
    materialize: Materialize, catalog: Callable[[int], None], store: Store
) -> None:
    chain = ("checkpoint", "exported_graph", "validated_graph", "simplified_graph", "optimized_graph")
    good = materialize(*chain)
    assert good.success
    assert materialized(good) == list(chain)
    assert checks(good) == [(name, True) for name in chain[2:]]
    assert metadata_of(good, "validated_graph")["least_layer_cosine"] > 0.9999
    assert metadata_of(good, "optimized_graph")["fusions"]

    published = Path(str(metadata_of(good, "validated_graph")["path"])).name

    catalog(1)
    materialize("checkpoint")
    bad = materialize("validated_graph", "simplified_graph")
    assert not bad.success
    assert materialized(bad) == []
    [check] = bad.get_asset_check_evaluations()
    assert not check.passed and check.blocking
    reason = str(check.metadata["reason"].value)
    assert "embedding: error" in reason and "bound" in reason and "at length" in reason
    [failure] = [event for event in bad.all_events if event.is_step_failure]
    assert "the graph does not match PyTorch: embedding: error" in str(failure.step_failure_data.error)

    later = materialize("optimized_graph")
    assert not later.success, "what is downstream has only the graph of the old checkpoint, and sees that"
    shelf = store.root / "tiny" / "validated_graph"
    assert [entry.name for entry in shelf.iterdir() if entry.is_dir()] == [published], (
        "nothing half-published"
    )
