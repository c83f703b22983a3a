"""Measures every engine on the same weights; writes docs/results/<machine>.json, docs/benchmarks.md, README's table."""

import argparse
import datetime
import logging
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.machine import Machine, describe_machine
from llama4_pipeline.metrics.bandwidth import measure_read_bandwidth
from llama4_pipeline.metrics.bench import in_precision
from llama4_pipeline.metrics.isolated import last_line
from llama4_pipeline.progress import Progress
from llama4_pipeline.runtime.engines import available_cores, find_engine
from llama4_pipeline_tests.benchmark import quality
from llama4_pipeline_tests.benchmark.cases import Entry, Model, find_models, plan_of
from llama4_pipeline_tests.benchmark.engine import Request
from llama4_pipeline_tests.benchmark.page import write_page, write_readme_table
from llama4_pipeline_tests.benchmark.prepare import Workshop
from llama4_pipeline_tests.benchmark.record import ModelRecord, Quality, Record, Row, Run, write_record
from llama4_pipeline_tests.benchmark.targets import targets

_LIMIT_SECONDS = 1200.0  # of one process; compiling takes long, and PyTorch on the text of the divergence
_REASON_CHARACTERS = 300
_THREADS_OF_A_MAKER = 4  # a graph is traced in one thread, and its weights are rounded in all
_ROOT = Path(__file__).parents[2]
_logger = logging.getLogger("llama4_pipeline.benchmark")


def main() -> int:
    """Runs the suite.

    Returns:
        0 whatever the ratios are, since a machine may be slow without a fault of ours; 2 where a quality could not be
        measured: the record is written then, and no page.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", default="", help="names of the catalog, separated by commas; the suite by default"
    )
    parser.add_argument("--engines", default="", help="whose rows alone are measured; goes with --record")
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured in turns")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/var/tmp/llama4-benchmark"), help="graphs stay there"
    )
    parser.add_argument(
        "--record", type=Path, help="write this file alone, anew after each run: no page, no README"
    )
    asked = parser.parse_args()
    if asked.engines and not asked.record:
        parser.error("--engines leaves rows out: name a file with --record, and the pages stay as they are")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        models = find_models(_names(asked.models), asked.device, _names(asked.engines))
        record = _measure(models, asked.rounds, asked.threads, asked.device, asked.scratch, asked.record)
    except (InputError, CheckFailed) as error:
        _logger.error("%s", error)
        return 2
    file = asked.record or _ROOT / "docs" / "results" / f"{_slug(record.machine)}.json"
    unjudged = any(
        model.is_judged
        and any(entry.is_judged for entry in model.entries)
        and not any(row.quality for row in measured.rows)
        for model, measured in zip(models, record.models, strict=True)
    )
    if not asked.record:
        write_record(record, file)
    if not asked.record and not unjudged:
        write_page(record, file, _ROOT / "docs" / "benchmarks.md")
        write_readme_table(record, _ROOT / "README.md")
    for target in targets(record):
        value = "" if target.value is None else f"{target.value:.3g}"
        sign = ">=" if target.at_least else "<="
        print(f"{target.verdict:<12} {value:>7} {sign} {target.bound:<5g} {target.model}: {target.what}")
    return 2 if unjudged else 0


def _measure(
    models: list[Model], rounds: int, threads: int, device: str, scratch: Path, file: Path | None
) -> Record:
    record = Record(
        measured_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=_commit(),
        device=device,
        threads=threads,
        rounds=rounds,
        machine=describe_machine(),
        models=[],
    )
    for model in models:
        workshop = Workshop(model, scratch, device)
        bench = _Bench(model, workshop, threads, device)
        for _ in bench.measure_in_turns(rounds):
            if file:  # a machine that is lent by the minute may be gone before the end
                write_record(record.with_model(bench.record({})), file)
        try:
            qualities = _judge(model, workshop, bench.judged(), threads, device)
        except CheckFailed as error:  # what was measured for an hour counts without it
            _logger.error("%s", error)
            qualities = {}
        record = record.with_model(bench.record(qualities))
        if file:
            write_record(record, file)
    return record


class _Bench:
    """The rows of one model: what each opens, its runs, and why it has none."""

    def __init__(self, model: Model, workshop: Workshop, threads: int, device: str) -> None:
        self._model, self._workshop, self._threads, self._device = model, workshop, threads, device
        self._paths: dict[str, Path] = {}
        self._bandwidths: list[float] = []
        self._runs: dict[str, list[Run]] = {entry.key: [] for entry in model.entries}
        self._reasons = {entry.key: entry.missing(device, model.has_experts) for entry in model.entries}
        with ThreadPoolExecutor(max(threads // _THREADS_OF_A_MAKER, 1)) as makers:
            list(makers.map(self._make, [entry for entry in model.entries if not self._reasons[entry.key]]))

    def measure_in_turns(self, rounds: int) -> Iterator[None]:
        """Stops after each run."""
        entries = self._model.entries
        turns = [entry for each in range(rounds) for entry in entries if entry.interleaved or not each]
        with Progress(self._model.title, total=len(turns), unit="runs") as progress:
            for entry in turns:
                if not self._reasons[entry.key]:
                    self._bandwidths.append(measure_read_bandwidth(self._threads, self._device))
                    with self._reason_kept(entry):
                        self._runs[entry.key].append(self._run(entry))
                progress.advance(note=entry.key)
                yield

    def record(self, qualities: Mapping[str, Quality]) -> ModelRecord:
        """What was measured, with the quality of rows by key."""
        if not self._bandwidths:
            self._bandwidths.append(measure_read_bandwidth(self._threads, self._device))
        checkpoint = Checkpoint.open(self._workshop.checkpoint, with_weights=False)
        return ModelRecord(
            name=self._model.name,
            title=self._model.title,
            parameters=checkpoint.architecture.parameters(),
            # In the same quarter of an hour as the rows: other work on the machine takes from both.
            bandwidth=statistics.median(self._bandwidths),
            rows=[self._row(entry, qualities.get(entry.key)) for entry in self._model.entries],
        )

    def judged(self) -> dict[str, tuple[str, Path]]:
        """The rows whose quality is measured: engine, and what it opens."""
        return {
            entry.key: (entry.engine, self._paths[entry.key])
            for entry in self._model.entries
            if entry.is_judged and self._runs[entry.key]
        }

    def _make(self, entry: Entry) -> None:
        with self._reason_kept(entry):
            self._paths[entry.key] = self._workshop.path(entry)

    def _row(self, entry: Entry, judged: Quality | None) -> Row:
        runs = self._runs[entry.key]
        title = runs[0].title if runs else in_precision(find_engine(entry.engine).title, entry.precision)
        reason = self._reasons[entry.key]
        return Row(key=entry.key, title=title, unavailable=reason, runs=runs, quality=judged)

    def _run(self, entry: Entry) -> Run:
        request = Request(
            engine=entry.engine,
            path=self._paths[entry.key],
            dtype=entry.precision if find_engine(entry.engine).runs == "checkpoint" else "float32",
            threads=self._threads,
            device=self._device,
            plan=plan_of(self._model, entry, self._device),
        )
        line = _child("engine", request.model_dump_json(), f"{entry.key} on {self._model.title}")
        return Run.model_validate_json(line)

    @contextmanager
    def _reason_kept(self, entry: Entry) -> Iterator[None]:
        """A row that fails says why, and the others go on."""
        try:
            yield
        except CheckFailed as error:
            _logger.error("%s", error)
            self._reasons[entry.key] = str(error)[-_REASON_CHARACTERS:]


def _judge(
    model: Model, workshop: Workshop, judged: dict[str, tuple[str, Path]], threads: int, device: str
) -> dict[str, Quality]:
    if not model.is_judged or not judged:
        return {}
    request = quality.QualityRequest(
        checkpoint=workshop.checkpoint, judged=judged, threads=threads, device=device
    )
    return quality.RESULTS.validate_json(
        _child("quality", request.model_dump_json(), f"quality of {model.title}")
    )


def _child(module: str, request: str, what: str) -> str:
    return last_line([sys.executable, "-m", f"{__package__}.{module}", request], what, _LIMIT_SECONDS)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(filter(None, listed.split(",")))


def _commit() -> str:
    words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "no commit"
    except FileNotFoundError:
        return "no commit"


def _slug(machine: Machine) -> str:
    name = (
        machine.gpu.split(",")[0]
        if machine.gpu
        else f"{machine.cpu}-{machine.cores}-cores-{_vectors(machine)}"
    )
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _vectors(machine: Machine) -> str:
    return machine.features[-1] if machine.features else ""


if __name__ == "__main__":
    sys.exit(main())
