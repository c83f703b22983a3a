"""What the assets are given: the artifact store and the device."""

import dagster as dg
from pydantic import Field

from llama4_pipeline.artifacts.location import artifacts_root, checked_root, history_directory, open_store
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.device import Device, find_device

PAGES_VARIABLE = "LLAMA4_PIPELINE_PAGES"
"""Environment variable: where `llama4-pipeline pages` answers, so that a click opens the page. A UI opens no files."""


class ArtifactStore(dg.ConfigurableResource):
    """The content-addressed store of artifacts."""

    root: str = Field(
        default_factory=artifacts_root,
        description="Directory or URL of the store: $LLAMA4_PIPELINE_ARTIFACTS, else artifacts/ in $DAGSTER_HOME.",
    )

    def open(self) -> Store:
        """The store itself."""
        return open_store(checked_root(self.root))

    def history(self) -> str:
        """The directory of the history of measurements."""
        return history_directory(checked_root(self.root))


class ComputeDevice(dg.ConfigurableResource):
    """CUDA where a GPU and the libraries for it are there, else the CPU; the log says which and why."""

    def find(self) -> Device:
        """The device that steps compute on."""
        return find_device()
