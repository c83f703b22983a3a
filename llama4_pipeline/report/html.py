"""The report: one HTML page that needs no network, for a phone as for a wide screen, light or dark."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from llama4_pipeline.machine import Machine
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.report.claims import check_claims
from llama4_pipeline.report.plots import PLOTS, Picture, row_color, to_svg
from llama4_pipeline.report.rows import Row, is_baseline, table_rows, tables
from llama4_pipeline.units import format_bytes, format_number


@dataclass(frozen=True)
class _Highlight:
    """One figure of the fastest engine, large."""

    figure: str
    meaning: str


def render_page(
    measurements: Sequence[Measurement],
    *,
    command: str,
    measured_on: datetime.date,
    random_weights: bool = False,
    pictures: Sequence[Picture] = (),
) -> str:
    """Renders the report on one model.

    Args:
        measurements: one for each engine, of one model and one machine.
        command: what a person types to make the page again.
        measured_on: the day of the measurements.
        random_weights: as in `benchmark_table`.
        pictures: shown behind those of the table.

    Returns:
        HTML without references to anything outside it.
    """
    rows = table_rows(measurements, random_weights=random_weights)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llama4_pipeline", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    return environment.get_template("page.html").render(
        model=measurements[0].model,
        rows=[(row, row_color(place)) for place, row in enumerate(rows)],
        fastest=_fastest(rows),
        highlights=_highlights(rows),
        tables=tables(rows),
        plots=_plots(rows, pictures),
        claims=check_claims(rows),
        random_weights=random_weights,
        settings=_settings(measurements[0]),
        machine=_machine(measurements[0].machine),
        command=command,
        measured_on=measured_on.isoformat(),
    )


def _fastest(rows: Sequence[Row]) -> Row | None:
    return max(
        (row for row in rows if row.speedup is not None), key=lambda row: row.speedup or 0.0, default=None
    )


def _highlights(rows: Sequence[Row]) -> list[_Highlight]:
    """What the fastest engine gains and costs, as far as it was measured."""
    fastest = _fastest(rows)
    if fastest is None or fastest.speedup is None or fastest.speedup <= 1:
        return []
    measured, eager = (
        fastest.measurement,
        next(row.measurement for row in rows if is_baseline(row.measurement)),
    )
    found = [_Highlight(f"{format_number(fastest.speedup)}x", "as fast per token as PyTorch eager")]
    if measured.model_bytes and eager.model_bytes:
        share = measured.model_bytes / eager.model_bytes
        found.append(_Highlight(f"{share:.0%}", f"of the model's size: {format_bytes(measured.model_bytes)}"))
    if measured.peak_memory_bytes and eager.peak_memory_bytes:
        share = measured.peak_memory_bytes / eager.peak_memory_bytes
        found.append(
            _Highlight(f"{share:.0%}", f"of the peak memory: {format_bytes(measured.peak_memory_bytes)}")
        )
    if measured.perplexity and eager.perplexity and not fastest.random_weights:
        change = measured.perplexity / eager.perplexity - 1
        found.append(_Highlight(f"{change:+.2%}", f"perplexity, now {measured.perplexity:.3f}"))
    return found


def _plots(rows: Sequence[Row], pictures: Sequence[Picture]) -> list[tuple[str, str, Markup]]:
    """Title, caption and drawing of every picture that there is something to draw for."""
    drawn = [(plot.title, plot.caption, plot.draw(rows)) for plot in PLOTS]
    drawn += [(picture.title, picture.caption, picture.figure) for picture in pictures]
    return [
        (title, caption, Markup(to_svg(figure))) for title, caption, figure in drawn if figure is not None
    ]


def _settings(measurement: Measurement) -> dict[str, str]:
    return {
        "Device": f"{measurement.device}, {measurement.threads} threads",
        "Prompt": f"{measurement.prompt_tokens} tokens",
        "Generated": f"{measurement.new_tokens} tokens, {measurement.repeats} times",
    }


def _machine(machine: Machine) -> dict[str, str]:
    described = {
        "Processor": f"{machine.cpu}, {machine.cores} cores",
        "Memory": format_bytes(machine.memory_bytes),
        "GPU": machine.gpu or "none",
        "System": machine.system,
        "Libraries": ", ".join(f"{name} {version}" for name, version in machine.libraries.items()),
    }
    if machine.read_bandwidth_bytes_per_second is not None:
        described["Read bandwidth"] = (
            f"{format_bytes(machine.read_bandwidth_bytes_per_second)} per second, measured"
        )
    return described
