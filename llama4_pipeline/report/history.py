"""The history of measurements: one Parquet file for each, and whether the newest is slower than usual.

A file's name follows from the measurement, and it appears by one rename. So appending twice changes nothing, any
number of runs append at once without a lock, and `pandas.read_parquet` reads the directory as one table.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

import pandas as pd
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from llama4_pipeline.artifacts.manifest import Manifest
from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.report.commit import commit_of
from llama4_pipeline.report.table import benchmark_table
from llama4_pipeline.units import format_number

COMPARED = {"latency_p50_ms": "ms per token, p50", "time_to_first_token_ms": "ms to the first token"}
"""Columns in which an engine can be slower than usual, as a person calls them."""
RECENT_NIGHTS = 14
FEWEST_NIGHTS = 3
_MARGIN = 0.10
_SPREADS = 4.0
_SIGMA_PER_DEVIATION = 1.4826  # median absolute deviation to standard deviation, for a normal distribution
_ALIKE = [
    "model", "engine", "precision", "device", "threads", "prompt_tokens", "new_tokens", "machine_description",
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A figure of one engine beside what it usually is.

    Attributes:
        engine: As in the table.
        figure: A key of `COMPARED`.
        now: Of the newest measurement, ms.
        usual: Median over recent nights, ms.
        limit: What the newest may be at most, ms.
        nights: How many nights the median is taken over.
    """

    engine: str
    figure: str
    now: float
    usual: float
    limit: float
    nights: int

    @property
    def slower(self) -> bool:
        """Whether this is a slowdown; never so over fewer than `FEWEST_NIGHTS`."""
        return self.nights >= FEWEST_NIGHTS and self.now > self.limit

    def sentence(self) -> str:
        """The comparison in words."""
        usual = f"usually {format_number(self.usual)} (median of {self.nights} nights)"
        verdict = f"{self.now / self.usual - 1:+.0%}, allowed up to {format_number(self.limit)}"
        if self.nights < FEWEST_NIGHTS:
            verdict = f"{self.now / self.usual - 1:+.0%}, not judged before {FEWEST_NIGHTS} nights"
        return f"{self.engine}: {format_number(self.now)} {COMPARED[self.figure]}, {usual}: {verdict}"


def append(
    directory: str,
    measurements: Sequence[Measurement],
    manifest: Manifest,
    *,
    random_weights: bool = False,
) -> str:
    """Adds a measurement to the history; once more changes nothing.

    Args:
        directory: Of the history, a path or a URL that fsspec knows; made if it is not there.
        measurements: The rows of the table.
        manifest: Of the artifact that they were read from: its time, digest, code, libraries and machine.
        random_weights: As in `benchmark_table`.

    Returns:
        The file, with the columns of `benchmark_table` and those of `_circumstances`.
    """
    measured_at = pd.Timestamp(manifest.created)
    files, base = _place(directory)
    name = f"{measured_at:%Y%m%dT%H%M%SZ}-{manifest.recipe.model}-{manifest.digest[:16]}.parquet"
    if files.exists(f"{base}/{name}"):
        return f"{base}/{name}"
    table = benchmark_table(measurements, random_weights=random_weights).assign(**_circumstances(manifest))
    # Typed, or a column of None would fit no other file's text.
    texts = table.columns[table.dtypes == "object"]
    table = table.astype(dict.fromkeys(texts, "string")).assign(measured_at=measured_at)
    files.makedirs(base, exist_ok=True)
    scratch = f"{base}/.{uuid.uuid4().hex}"
    files.pipe_file(scratch, table.to_parquet(index=False))
    files.mv(scratch, f"{base}/{name}")
    return f"{base}/{name}"


def read(directory: str) -> pd.DataFrame:
    """Every measurement, oldest first; columns that an older file lacks are empty there.

    Raises:
        InputError: a file there is no table.
    """
    files, base = _place(directory)
    tables = []
    found = files.find(base, maxdepth=1)  # glob would read brackets in the path as a pattern
    for file in sorted(name for name in found if name.endswith(".parquet")):
        content = BytesIO(files.cat_file(file))
        try:
            tables.append(pd.read_parquet(content))
        except (OSError, ValueError) as error:  # pyarrow's own, of a damaged file and of another
            raise InputError(f"{file} is no readable Parquet file: remove it from the history") from error
    return pd.concat(tables, ignore_index=True)


def _place(directory: str) -> tuple[AbstractFileSystem, str]:
    """A URL's file system and path in it; "::" in a local path would chain URLs."""
    if "://" in directory:
        return cast("tuple[AbstractFileSystem, str]", url_to_fs(directory))
    return LocalFileSystem(), directory


def comparable(history: pd.DataFrame, digest: str) -> pd.DataFrame:
    """The rows of a measurement, and the earlier ones of the same model, engines, settings and machine.

    Args:
        history: As `read` gives it.
        digest: Of the measurement, which is in the history.
    """
    newest = history[history["digest"] == digest]
    alike = history.merge(newest[_ALIKE].drop_duplicates())
    return alike[alike["measured_at"] <= newest["measured_at"].max()]


def compare(history: pd.DataFrame, digest: str) -> list[Comparison]:
    """Holds one measurement against the nights before its day.

    Compared are rows of the same model, engine and settings, measured on a machine of the same description. Each
    day counts once, with its median. A figure is slow past the median of the last nights by a tenth, and by four
    standard deviations as the spread of those nights (median absolute deviation) tells them.

    Args:
        history: As `read` gives it.
        digest: Of the measurement, which is in the history.

    Returns:
        One for each figure that was measured now and on an earlier day.
    """
    compared = []
    for _, rows in comparable(history, digest).groupby(_ALIKE, sort=False, dropna=False):
        newest = rows[rows["digest"] == digest].iloc[-1]
        night = rows["measured_at"].dt.date
        earlier = rows[night < newest["measured_at"].date()]
        by_night = earlier.groupby(night)[list(COMPARED)].median()
        for figure in COMPARED:
            nights = by_night[figure].dropna().tail(RECENT_NIGHTS)
            if len(nights) and pd.notna(newest[figure]):
                compared.append(_compare(str(newest["engine"]), figure, float(newest[figure]), nights))
    return compared


def _compare(engine: str, figure: str, now: float, nights: "pd.Series[float]") -> Comparison:
    usual = float(nights.median())
    spread = _SIGMA_PER_DEVIATION * float((nights - usual).abs().median())
    limit = usual + max(_MARGIN * usual, _SPREADS * spread)
    return Comparison(engine, figure, now, usual, limit, len(nights))


def _circumstances(manifest: Manifest) -> dict[str, str | None]:
    recipe = manifest.recipe
    return {
        "digest": manifest.digest,
        "machine_description": json.dumps(recipe.machine, sort_keys=True),
        "libraries": json.dumps(recipe.libraries, sort_keys=True),
        "code_version": recipe.code_version,
        "commit": commit_of(Path(__file__).parents[1]),
    }
