"""`kill -9` at random moments of the pipeline, with real Dagster processes: nothing half made, nothing stuck."""

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import psutil
import pytest

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE
from llama4_pipeline.orchestration.executors import EXECUTOR_VARIABLE
from llama4_pipeline.orchestration.materialization import GPU_POOL
from llama4_pipeline.stages import STAGES
from llama4_pipeline_tests.assets.conftest import CATALOG
from llama4_pipeline_tests.orchestration.dagster_processes import ROOT, DagsterProcesses, command_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]
MODEL = "tiny"
SEED = 20261124
MOMENTS = 10
FEWEST_UNFINISHED = 5
VICTIMS = ("step", "run worker", "daemon", "everything")
_RUN_SECONDS = 1800
_SLOT_SECONDS = 180


@pytest.fixture
def dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DagsterProcesses:
    (tmp_path / "catalog.toml").write_text(CATALOG.format(seed=0))
    monkeypatch.delenv(EXECUTOR_VARIABLE, raising=False)
    settings = {
        USER_CATALOG_VARIABLE: str(tmp_path / "catalog.toml"),
        ARTIFACTS_VARIABLE: str(tmp_path / "artifacts"),
    }
    return DagsterProcesses(tmp_path / "home", ROOT / "dagster.yaml", settings)


def test_two_runs_at_once_and_ten_kills(dagster: DagsterProcesses, tmp_path: Path, tried: list[str]) -> None:
    store = Store(tmp_path / "artifacts")
    chance = random.Random(SEED)
    with dagster.running():
        two = [dagster.launch(MODEL), dagster.launch(MODEL)]
        for run_id in two:
            assert dagster.wait_for(run_id, _RUN_SECONDS) is dg.DagsterRunStatus.SUCCESS, dagster.failures(
                run_id
            )
        assert _built(dagster, two) == Counter(STAGES.keys()), "of two runs at once, one made each stage"
        assert store.verify() == {}
        tried.append(f"two runs of {MODEL} at once: each of {len(STAGES)} stages made once")

        kills = []
        for number, stage in enumerate(_drawn(chance)):
            # In the first half: alone, a stage takes less than when two runs were at work.
            seconds = chance.uniform(0, store.input_of(MODEL, stage).manifest.seconds / 2)
            kills.append(_Kill(dagster, store, VICTIMS[number % len(VICTIMS)], stage, seconds))
            kills[-1].carry_out()
    unfinished = sum(kill.unfinished for kill in kills)
    said = "; ".join(map(str, kills))
    assert unfinished >= FEWEST_UNFINISHED, (
        f"{unfinished} of {MOMENTS} kills came before the artifact: {said}"
    )
    tried.append(
        f"{MOMENTS} kills (seed {SEED}) in {MOMENTS} stages, {unfinished} before the artifact was there, "
        f"only the lost stage redone, no slot kept: {said}"
    )


def _drawn(chance: random.Random) -> list[str]:
    """Stages without repeats, one of those that take a slot of the pool among them."""
    pooled = [name for name, stage in STAGES.items() if stage.may_use_gpu]
    first = chance.choice(pooled)
    drawn = [first, *chance.sample([name for name in STAGES if name != first], MOMENTS - 1)]
    chance.shuffle(drawn)
    return drawn


class _Kill:
    """One stage is removed, a run makes it again, and a process is killed while it does.

    Attributes:
        unfinished: Whether the artifact was absent right after the kill.
    """

    def __init__(
        self, dagster: DagsterProcesses, store: Store, victim: str, stage: str, seconds: float
    ) -> None:
        self.dagster, self.store = dagster, store
        self.victim, self.stage, self.seconds = victim, stage, seconds
        self.unfinished = False

    def __str__(self) -> str:
        state = "unfinished" if self.unfinished else "finished"
        return f"{self.victim} in {self.stage} after {self.seconds:.1f} s ({state})"

    def carry_out(self) -> None:
        """Does it, and looks at what is left."""
        others = {artifact.directory for artifact in self.store.artifacts() if artifact.stage != self.stage}
        lost = self.store.input_of(MODEL, self.stage).directory
        shutil.rmtree(lost)
        run_id = self.dagster.launch(MODEL)
        self._wait_for_start(run_id)
        time.sleep(self.seconds)
        self._kill()
        self.unfinished = not lost.exists()
        assert self.store.verify() == {}, "nothing half made is visible"
        assert others <= {artifact.directory for artifact in self.store.artifacts()}
        if self.victim in ("daemon", "everything"):
            self.dagster.start_daemon()

        runs = self.dagster.wait_for_all(_RUN_SECONDS)
        if not self._succeeded(runs[-1]):  # a step that died is not tried again by itself
            self.dagster.launch(MODEL)
            runs = self.dagster.wait_for_all(_RUN_SECONDS)
        assert self._succeeded(runs[-1]), self.dagster.failures(runs[-1])
        built = _built(self.dagster, runs[runs.index(run_id) :])
        assert set(built) <= {self.stage} | _behind(self.stage) and max(built.values(), default=1) == 1
        assert self.store.verify() == {} and self.store.input_of(MODEL, self.stage).directory == lost
        _wait_for_free_slots(self.dagster)

    def _succeeded(self, run_id: str) -> bool:
        return self.dagster.wait_for(run_id, _RUN_SECONDS) is dg.DagsterRunStatus.SUCCESS

    def _wait_for_start(self, run_id: str) -> None:
        deadline = time.monotonic() + _RUN_SECONDS
        with self.dagster.instance() as instance:
            while time.monotonic() < deadline:
                started = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
                if any(entry.step_key == self.stage for entry in started):
                    return
                time.sleep(0.05)
        raise TimeoutError(f"{self.stage} did not start in run {run_id}")

    def _kill(self) -> None:
        if self.victim == "everything":  # as a power cut does
            self.dagster.stop()
            return
        if self.victim == "daemon":
            assert self.dagster.daemon
            self.dagster.daemon.kill()
            self.dagster.daemon.wait()
            return
        workers = [child for server in self.dagster.code_servers() for child in _spawned(server)]
        steps = [child for worker in workers for child in _spawned(worker)]
        at_work = [step for step in steps if f"/{self.stage}/" in _open_files(step)]
        [killed, *_] = workers if self.victim == "run worker" else at_work + steps
        killed.kill()
        psutil.wait_procs([killed], timeout=30)


def _open_files(process: psutil.Process) -> str:
    try:
        return " ".join(file.path for file in process.open_files())
    except psutil.Error:  # it ended
        return ""


def _spawned(parent: psutil.Process) -> list[psutil.Process]:
    return [child for child in parent.children() if "spawn_main" in " ".join(command_of(child))]


def _built(dagster: DagsterProcesses, runs: list[str]) -> Counter[str]:
    """How often each stage was made in some runs, after their records."""
    with dagster.instance() as instance:
        entries = [
            entry
            for run_id in runs
            for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        ]
    made = [entry.asset_materialization for entry in entries if entry.asset_materialization]
    return Counter(each.asset_key.path[-1] for each in made if not each.metadata["reused"].value)


def _behind(stage: str) -> set[str]:
    """The stages that a new artifact of a stage makes invalid: those behind a measurement, which differs each time."""
    found = {stage} if STAGES[stage].measures else set()
    for name, other in STAGES.items():
        if found & set(other.inputs):
            found.add(name)
    return found


def _wait_for_free_slots(dagster: DagsterProcesses) -> None:
    """Dagster gives the slots of a dead run back a minute after its end."""
    deadline = time.monotonic() + _SLOT_SECONDS
    with dagster.instance() as instance:
        while instance.event_log_storage.get_concurrency_info(GPU_POOL).active_slot_count:
            assert time.monotonic() < deadline, "a slot of the pool is taken though no run is under way"
            time.sleep(1)
