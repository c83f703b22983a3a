"""The model that the assets are tried on: the catalog's `tiny`, replaced by a smaller one with random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import pytest

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE
from llama4_pipeline.definitions import defs
from llama4_pipeline.orchestration.resources import ArtifactStore, ComputeDevice

CATALOG = """
[models.tiny]
source = "random"
seed = {seed}
max_context = 40
benchmark = {{ prompt_tokens = 8, new_tokens = 4, batch_sizes = [1], repeats = 1 }}

[models.tiny.config]
vocab_size = 128
hidden_size = 64
intermediate_size = 64
intermediate_size_mlp = 128
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 16
num_local_experts = 4
moe_layers = [1, 2, 3]
no_rope_layer_interval = 4
attention_chunk_size = 16
floor_scale = 16
max_position_embeddings = 256
"""

Materialize = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Writes the catalog with the seed of the weights."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    file = tmp_path / "catalog.toml"
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(file))

    def write(seed: int) -> None:
        file.write_text(CATALOG.format(seed=seed))

    write(0)
    return write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def materialize(catalog: Callable[[int], None], store: Store) -> Materialize:
    """Materializes assets of the definitions for `tiny` on one instance and one store."""
    instance = dg.DagsterInstance.ephemeral()
    resources = {"artifacts": ArtifactStore(root=str(store.root)), "device": ComputeDevice()}

    def run(*names: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            list(defs.assets or []),
            selection=list(names),
            partition_key="tiny",
            instance=instance,
            resources=resources,
            raise_on_error=False,
        )

    return run


def metadata_of(result: dg.ExecuteInProcessResult, name: str) -> dict[str, object]:
    """The plain values of an asset's metadata."""
    [materialization] = result.asset_materializations_for_node(name)
    return {key: value.value for key, value in materialization.metadata.items()}


def materialized(result: dg.ExecuteInProcessResult) -> Sequence[str]:
    """Names of the assets that a run materialized, in order."""
    return [
        event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key
    ]
