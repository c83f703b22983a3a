"""The gate, with a graph that really does not match its checkpoint."""

from collections.abc import Callable

import dagster as dg

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline_tests.assets.conftest import Materialize, materialized, metadata_of


def checks(result: dg.ExecuteInProcessResult) -> list[tuple[str, bool]]:
    return [(each.asset_key.path[-1], each.passed) for each in result.get_asset_check_evaluations()]


def test_a_graph_that_matches_passes_and_one_that_does_not_is_held_back(
    materialize: Materialize, catalog: Callable[[int], None], store: Store
) -> None:
    good = materialize("checkpoint", "exported_graph", "validated_graph")
    assert good.success
    assert materialized(good) == ["checkpoint", "exported_graph", "validated_graph"]
    assert checks(good) == [("validated_graph", True)]
    assert metadata_of(good, "validated_graph")["least_layer_cosine"] > 0.9999
    published = store.input_of("tiny", "validated_graph")
    exported = store.input_of("tiny", "exported_graph")
    weights = [each.directory / "model.onnx.data" for each in (published, exported)]
    assert weights[0].samefile(weights[1]), "weights exist once"

    catalog(1)
    materialize("checkpoint")
    bad = materialize("validated_graph", "simplified_graph")
    assert not bad.success
    assert materialized(bad) == [], "neither the graph nor what is behind it"
    [check] = bad.get_asset_check_evaluations()
    assert not check.passed and check.blocking
    reason = str(check.metadata["reason"].value)
    assert "embedding: error" in reason and "bound" in reason and "at length" in reason
    [failure] = [event for event in bad.all_events if event.is_step_failure]
    assert "the graph does not match PyTorch: embedding: error" in str(failure.step_failure_data.error)
    assert store.input_of("tiny", "validated_graph") == published
    assert list(published.directory.parent.glob(".scratch-*")) == []
