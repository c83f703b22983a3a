"""What a person reads on an asset's page: what it is, what it needs, how long it takes here."""

from collections.abc import Iterator

from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import ModelSpec, load_catalog
from llama4_pipeline.errors import InputError
from llama4_pipeline.orchestration.resources import ArtifactStore
from llama4_pipeline.stages import Stage
from llama4_pipeline.units import format_bytes, format_seconds

_UNKNOWN = "?"


def describe(stage: Stage) -> str:
    """The description of a stage in Markdown: a sentence, its inputs, and a row for each model of the catalog.

    Memory and disk are computed from the model's architecture; the time is that of the artifact in the local store,
    as it was when the definitions were loaded.
    """
    return "\n".join([stage.description, "", f"Needs {_inputs(stage)}.", "", *_rows(stage)])


def _inputs(stage: Stage) -> str:
    needed = " and ".join(stage.inputs) if len(stage.inputs) < 3 else ", ".join(stage.inputs)
    parts = [needed or "no other asset"]
    if stage.may_use_gpu:
        parts.append("the GPU for itself, where there is one")
    if stage.measures:
        parts.append("a machine that computes nothing else")
    return "; ".join(parts)


def _rows(stage: Stage) -> Iterator[str]:
    root = ArtifactStore().root
    store = None if "://" in root else ArtifactStore().open()
    yield "| model | memory | disk | time here |"
    yield "|---|--:|--:|--:|"
    for model in load_catalog().values():
        needs = model.needs(stage.name)
        sizes = (
            [format_bytes(size) for size in (needs.memory_bytes, needs.disk_bytes)]
            if needs
            else [_UNKNOWN] * 2
        )
        yield f"| {model.name} | {' | '.join(sizes)} | {_time(stage, model, store)} |"


def _time(stage: Stage, model: ModelSpec, store: Store | None) -> str:
    try:
        seconds = store.input_of(model.name, stage.name).manifest.seconds if store else None
    except InputError:  # not built here yet
        seconds = None
    return _UNKNOWN if seconds is None else format_seconds(seconds)
