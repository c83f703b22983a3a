"""Commands about catalog models and what was made of them: run, plan, models, store."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from llama4_pipeline.artifacts.location import open_store
from llama4_pipeline.cli.parameters import json_option
from llama4_pipeline.cli.result import show
from llama4_pipeline.errors import CheckFailed
from llama4_pipeline.stages import STAGES
from llama4_pipeline.units import format_bytes, format_number

if TYPE_CHECKING:
    from llama4_pipeline.catalog import ModelSpec

_MODEL = click.option("--model", required=True, metavar="NAME", help="A model of `llama4-pipeline models`.")


@click.command()
@_MODEL
@json_option
def run(model: str, as_json: bool) -> None:
    """Run every stage for a catalog model; print the table."""
    from dagster import DagsterExecutionInterruptedError

    from llama4_pipeline.orchestration.local_run import run_pipeline

    try:
        done = run_pipeline(model)
    except DagsterExecutionInterruptedError as error:  # what Dagster makes of a signal, after its own tidying
        raise KeyboardInterrupt from error
    record = asdict(done)
    record |= {"table": str(done.table), "page": str(done.page)}
    made = sum(not stage.reused for stage in done.stages)
    click.echo(f"{made} stages ran, {len(done.stages) - made} were reused; report: {done.page}", err=True)
    show(record, done.table.read_text(encoding="utf-8"), as_json)


@click.command()
@_MODEL
@json_option
def plan(model: str, as_json: bool) -> None:
    """Tell which stages `run` would run, surely or if their input changes, and why."""
    from tabulate import tabulate

    from llama4_pipeline import pipeline
    from llama4_pipeline.catalog import find_model
    from llama4_pipeline.device import find_device

    decisions = pipeline.plan(find_model(model), open_store(), find_device())
    rows = [(each.stage, each.state, each.reason) for each in decisions]
    table = tabulate(rows, headers=("stage", "", "why"))
    show({"model": model, "stages": [asdict(each) for each in decisions]}, table, as_json)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the catalog, with sizes and what each model needs."""
    from tabulate import tabulate

    from llama4_pipeline.catalog import load_catalog

    records = [_describe(model) for model in load_catalog().values()]
    headers = ("model", "weights", "parameters", "active", "memory", "disk", "what it is")
    show({"models": records}, tabulate(map(_row, records), headers=headers), as_json)


@click.group(no_args_is_help=False)
def store() -> None:
    """Look after the artifacts that `run` keeps."""


@store.command()
@json_option
def gc(as_json: bool) -> None:
    """Remove what nothing refers to, and say how much that frees."""
    kept = open_store()
    freed = kept.collect_garbage()
    text = f"{kept.place}: removed {freed.artifacts} artifacts, freed {format_bytes(freed.bytes)}"
    show(asdict(freed), text, as_json)


@store.command()
@json_option
def verify(as_json: bool) -> None:
    """Compare every artifact with its digest; exit 1 if one is damaged."""
    kept = open_store()
    damaged = kept.verify()
    count = sum(1 for _ in kept.artifacts())
    text = f"{kept.place}: {count} artifacts, {len(damaged)} damaged"
    show(
        {"artifacts": count, "damaged": damaged}, "\n".join([text, *map(": ".join, damaged.items())]), as_json
    )
    if damaged:
        raise CheckFailed(
            f"{len(damaged)} damaged: remove what a line says; llama4-pipeline run makes anew what it needs of the "
            "others, store gc removes the rest"
        )


def _describe(model: "ModelSpec") -> dict[str, Any]:
    """What is known of a model before anything is downloaded; the needs are those of its most demanding stage."""
    described: dict[str, Any] = {
        "name": model.name,
        "description": model.description,
        "source": model.source,
        "trained": model.has_trained_weights,
        "nightly": model.nightly,
    }
    if model.architecture:
        needs = {stage: asdict(needed) for stage in STAGES if (needed := model.needs(stage))}
        described |= {
            "parameters": model.architecture.parameters(),
            "active_parameters": model.architecture.active_parameters(),
            "memory_bytes": max(needed["memory_bytes"] for needed in needs.values()),
            "disk_bytes": sum(needed["disk_bytes"] for needed in needs.values()),
            "needs": needs,
        }
    return described


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "needs" in record:
        counts = [f"{format_number(record[key] / 1e6)} M" for key in ("parameters", "active_parameters")]
        sizes = [format_bytes(record[key]) for key in ("memory_bytes", "disk_bytes")]
    else:
        counts, sizes = ["?", "?"], ["?", "?"]
    return record["name"], record["source"], *counts, *sizes, record["description"]


COMMANDS = (run, plan, models, store)
