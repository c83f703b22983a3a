"""Makes what the engines run: one synthetic checkpoint of a model, its graphs and its GGUF files."""

import logging
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from threading import Lock

from llama4_pipeline.artifacts.code_version import code_version
from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.llama4.checkpoint import write_synthetic_checkpoint
from llama4_pipeline.methods import DEFAULT_METHOD
from llama4_pipeline.metrics.isolated import last_line
from llama4_pipeline.runtime.engines import find_engine
from llama4_pipeline_tests.benchmark.cases import MAX_CONTEXT, Entry, Model

_MAKERS = {
    "graph": "llama4_pipeline.graph.one_stream:export_in_one_stream",
    "gguf": "llama4_pipeline.llama4.gguf:write_gguf",
}
_logger = logging.getLogger(__name__)


class Workshop:
    """Holds what was made for a model, under names that change with the code that makes it."""

    def __init__(self, model: Model, scratch: Path, device: str = "cpu") -> None:
        self._device, self._is_judged = device, model.is_judged
        self._directory = scratch / model.title.replace(", ", "-").replace(" ", "-")
        self._locks: defaultdict[Path, Lock] = defaultdict(Lock)
        spec = load_catalog()[model.name]
        changes = {} if model.layers is None else {"num_hidden_layers": model.layers}
        if spec.source.startswith("local:"):
            self.checkpoint = Path(spec.source.removeprefix("local:"))
        else:
            self.checkpoint = self._directory / "checkpoint"
            write_synthetic_checkpoint(self.checkpoint, spec.config | changes, spec.seed, "bfloat16")

    def path(self, entry: Entry) -> Path:
        """What the engine of a row opens; made when it is not there yet. Several threads may ask.

        Raises:
            CheckFailed: the command that makes it failed; with what it said.
        """
        runs = find_engine(entry.engine).runs
        if runs == "checkpoint":
            return self.checkpoint
        suffix = ".gguf" if runs == "gguf" else ""
        version = code_version(_MAKERS[runs])[:12]
        method = self._method(entry, runs)
        name = "-".join(filter(None, (entry.precision, method, self._device)))
        out = self._directory / f"{name}-{version}{suffix}"
        with self._locks[out]:
            if not out.exists():
                self._remove_older(name, suffix)
                words = self._words(entry, runs, method)
                _logger.info("%s", " ".join(words))
                command = [sys.executable, "-m", "llama4_pipeline.cli", *words, "--out", str(out)]
                last_line(command, f"{words[0]} in {entry.precision}")
        return out

    def _method(self, entry: Entry, runs: str) -> str | None:
        """Of quantization; where quality is not measured the quickest, whose graph is as fast."""
        usual = DEFAULT_METHOD.get(entry.precision) if runs == "graph" else None
        return usual if self._is_judged or not usual else "rtn"

    def _words(self, entry: Entry, runs: str, method: str | None) -> list[str]:
        """The command that makes it, but for its `--out`."""
        from_checkpoint = ["--checkpoint", str(self.checkpoint), "--max-context", str(MAX_CONTEXT)]
        if runs == "gguf":
            return ["gguf", "--encoding", entry.precision, *from_checkpoint]
        how = ["--precision", entry.precision]
        if method:
            how += ["--method", method, "--device", self._device]
        return ["export", "--form", "fused", *how, *from_checkpoint]

    def _remove_older(self, name: str, suffix: str) -> None:
        for old in self._directory.glob(f"{name}-*{suffix}"):
            if old.is_dir() and not suffix:
                shutil.rmtree(old)
            elif suffix:
                old.unlink()
