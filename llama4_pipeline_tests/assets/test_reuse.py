"""An asset runs once and is reused; Dagster is told the content digest and the reason."""

from collections.abc import Callable

import dagster as dg

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline_tests.assets.conftest import Materialize, metadata_of


def data_version(result: dg.ExecuteInProcessResult, name: str) -> str | None:
    [materialization] = result.asset_materializations_for_node(name)
    return (materialization.tags or {}).get("dagster/data_version")


def test_a_second_materialization_reuses_the_artifact(
    materialize: Materialize, store: Store, catalog: Callable[[int], None]
) -> None:
    first, second = materialize("checkpoint"), materialize("checkpoint")
    assert first.success and second.success
    assert metadata_of(first, "checkpoint")["reused"] is False
    assert metadata_of(first, "checkpoint")["why"] == "never built"
    again = metadata_of(second, "checkpoint")
    assert again["reused"] is True
    assert str(again["why"]).startswith("nothing it is made from changed")
    assert again["layers"] == 4 and again["experts"] == 4
    artifact = store.input_of("tiny", "checkpoint")
    assert again["path"] == str(artifact.directory)
    assert data_version(first, "checkpoint") == data_version(second, "checkpoint") == artifact.digest

    catalog(1)
    third = materialize("checkpoint")
    assert metadata_of(third, "checkpoint")["why"] == "parameter seed: 0 -> 1"
    assert data_version(third, "checkpoint") != artifact.digest


def test_a_stage_without_its_input_fails_with_one_line(materialize: Materialize) -> None:
    result = materialize("exported_graph")
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "checkpoint of tiny has not been built: materialize checkpoint first" in str(
        failure.step_failure_data.error
    )
