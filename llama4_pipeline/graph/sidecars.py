"""The files that travel beside a graph: configuration and tokenizer."""

import shutil
from pathlib import Path

_NOT_SIDECARS = ("model.onnx", "manifest.json")


def copy_sidecars(source: Path, target: Path) -> None:
    """Copies every file of a graph directory but the graph, its weights and the manifest."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith(_NOT_SIDECARS):
            shutil.copyfile(path, target / path.name)
