"""What a measurement adds to the history, and how it stands there."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.store import naming_a_full_disk
from llama4_pipeline.builders.measurements import read_measurements

if TYPE_CHECKING:
    from llama4_pipeline.report.history import Comparison

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """A measurement beside the earlier ones: each figure's comparison, and the series as a PNG if there is one."""

    comparisons: list["Comparison"]
    plot: bytes | None

    @property
    def slowdowns(self) -> list["Comparison"]:
        """The figures that are slower than usual."""
        return [each for each in self.comparisons if each.slower]


def remember(artifact: Artifact, directory: str) -> Standing:
    """Appends a measurement to the history and compares it with the nights before.

    Args:
        artifact: Of the stage `benchmarks`.
        directory: Of the history.
    """
    from llama4_pipeline.report.history import append, compare, read
    from llama4_pipeline.report.history_plot import series
    from llama4_pipeline.report.plots import to_png

    manifest = artifact.manifest
    measurements = read_measurements(artifact.directory)
    with naming_a_full_disk("the history", directory, ARTIFACTS_VARIABLE):
        append(directory, measurements, manifest, random_weights=not manifest.recipe.parameters["trained"])
    history = read(directory)
    figure = series(history, artifact.digest)
    standing = Standing(compare(history, artifact.digest), to_png(figure) if figure else None)
    for slowdown in standing.slowdowns:
        _logger.warning("slower than usual: %s", slowdown.sentence())
    return standing
