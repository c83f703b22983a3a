"""The store with real files: publishing, reuse, damage, concurrency, kill -9, garbage."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llama4_pipeline.artifacts import locks
from llama4_pipeline.artifacts import store as artifacts_store
from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.artifacts.garbage import Freed
from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.artifacts.manifest import FileRecord
from llama4_pipeline.artifacts.publish import lock_of
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Make, Store
from llama4_pipeline.errors import InputError


def recipe(stage: str = "exported_graph", **ingredients: Any) -> Recipe:
    return Recipe(**{"stage": stage, "model": "tiny", "code_version": "1", **ingredients})


def writes(text: str, facts: Mapping[str, Any] | None = None) -> Make:
    def make(out: Path) -> Mapping[str, Any]:
        (out / "weights").mkdir()
        (out / "weights" / "a.bin").write_text(text)
        (out / "model.onnx").write_text("graph")
        return facts or {}

    return make


def never(out: Path) -> Mapping[str, Any]:
    raise AssertionError("was made again")


def test_a_file_where_a_stage_belongs_is_named(tmp_path: Path):
    shelf = tmp_path / "tiny" / "int8_graph"
    shelf.parent.mkdir()
    shelf.write_text("not a directory")
    with pytest.raises(InputError, match=r"tiny/int8_graph/latest.json cannot be read \(Not a directory\)"):
        Store(tmp_path).input_of("tiny", "int8_graph")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def test_an_input_that_is_being_replaced_is_there(store: Store) -> None:
    """Between two renames it has no name."""
    artifact, away = made(store, recipe()), store.root / "away"
    with ThreadPoolExecutor() as pool:
        with locks.exclusive(lock_of(artifact.local, store.root)):
            artifact.local.rename(away)
            found = pool.submit(store.input_of, "tiny", "exported_graph")
            time.sleep(0.2)
            assert not found.done()
            away.rename(artifact.local)
        assert found.result(timeout=10) == artifact


def made(store: Store, wanted: Recipe, text: str = "one") -> Artifact:
    return store.get_or_make(wanted, writes(text))[0]


def test_a_second_call_finds_what_the_first_made(store: Store) -> None:
    first, was_made = store.get_or_make(recipe(), writes("one", {"nodes": (7, 8), "loss": float("nan")}))
    second, made_again = store.get_or_make(recipe(), never)
    assert (was_made, made_again) == (True, False)
    assert second == first
    assert second.facts == {"nodes": [7, 8], "loss": None}
    assert {file.path for file in second.manifest.files} == {"model.onnx", "weights/a.bin"}
    assert second.manifest.bytes == len("one") + len("graph")
    assert store.latest("tiny", "exported_graph") == recipe()


def test_the_digest_is_of_the_content_alone(store: Store) -> None:
    assert made(store, recipe(code_version="1")).digest == made(store, recipe(code_version="2")).digest
    assert made(store, recipe(code_version="3"), "two").digest != made(store, recipe()).digest


def test_notes_are_kept_and_verified_but_are_no_content(store: Store) -> None:
    def make(out: Path) -> Mapping[str, Any]:
        (out / "notes").mkdir()
        (out / "notes" / "seconds.txt").write_text(str(time.monotonic_ns()))
        return writes("one")(out)

    first, _ = store.get_or_make(recipe(), make)
    second, _ = store.get_or_make(recipe(), make, anew=True)
    assert first.digest == second.digest
    (second.directory / "notes" / "seconds.txt").write_text("0")
    assert "notes/seconds.txt" in str(store.find(recipe()).damage)


def test_the_input_of_a_stage_is_the_latest_artifact(store: Store) -> None:
    with pytest.raises(
        InputError, match="exported_graph of tiny has not been built: materialize exported_graph"
    ):
        store.input_of("tiny", "exported_graph")
    made(store, recipe(code_version="1"))
    newer = made(store, recipe(code_version="2"))
    assert store.input_of("tiny", "exported_graph") == newer
    assert store.input_of("tiny", "exported_graph") != made(store, recipe(code_version="1"))
    assert store.input_of("tiny", "exported_graph").manifest.recipe.code_version == "1", (
        "reuse makes it the latest"
    )


def test_a_failed_build_leaves_nothing(store: Store) -> None:
    def fails(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        store.get_or_make(recipe(), fails)
    assert list(store.artifacts()) == []
    assert list((store.root / "tiny" / "exported_graph").iterdir()) == []
    assert store.latest("tiny", "exported_graph") is None


def test_made_anew_replaces_the_old_one(store: Store) -> None:
    old = made(store, recipe())
    new, was_made = store.get_or_make(recipe(), writes("measured later"), anew=True)
    assert was_made and new.directory == old.directory and new.digest != old.digest
    assert store.get_or_make(recipe(), never)[0] == new
    assert [entry.name for entry in new.directory.parent.glob(".*")] == []


def _overwrite(artifact: Artifact) -> None:
    (artifact.directory / "weights" / "a.bin").write_text("eno")


def _overwrite_behind_the_clock(artifact: Artifact) -> None:
    path = artifact.directory / "weights" / "a.bin"
    before = path.stat()
    path.write_text("eno")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(artifact: Artifact) -> None:
    (artifact.directory / "model.onnx").write_text("gra")


def _lose_a_file(artifact: Artifact) -> None:
    (artifact.directory / "model.onnx").unlink()


def _lose_the_manifest(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").unlink()


def _garble_the_manifest(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").write_text("{")


def _put_a_directory_for_the_manifest(artifact: Artifact) -> None:
    _lose_the_manifest(artifact)
    (artifact.directory / "manifest.json").mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_overwrite, "weights/a.bin has other content than was published"),
        (_overwrite_behind_the_clock, "weights/a.bin has other content than was published"),
        (_truncate, "model.onnx has 3 bytes instead of 5"),
        (_lose_a_file, "model.onnx is missing"),
        (_lose_the_manifest, "manifest.json is missing"),
        (_garble_the_manifest, "manifest.json cannot be read"),
        (_put_a_directory_for_the_manifest, "manifest.json is a directory"),
    ],
)
def test_damage_is_seen_named_and_repaired(store: Store, harm: Any, says: str) -> None:
    artifact = made(store, recipe())
    assert store.verify() == {}
    harm(artifact)
    assert store.find(recipe()).damage == says
    assert store.verify() == {artifact.place: says}
    repaired, was_made = store.get_or_make(recipe(), writes("one"))
    assert was_made and repaired.digest == artifact.digest
    assert store.verify() == {}


def test_what_is_published_has_the_rights_of_the_store(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"weights")
    mine.chmod(0o600)

    def make(out: Path) -> dict[str, Any]:
        (out / "model.safetensors").write_bytes(b"graph")
        (out / "model.safetensors").chmod(0o600)
        os.link(mine, out / "linked")
        return {}

    before = os.umask(0o002)
    try:
        artifact, _ = store.get_or_make(recipe(), make)
    finally:
        os.umask(before)
    modes = [(artifact.local / name).stat().st_mode & 0o777 for name in ("model.safetensors", "linked")]
    assert modes == [0o664, 0o600], "and a file that is another's too keeps its own"


def test_a_place_that_cannot_be_read_is_not_sound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store, recipe())
    model = store.root / recipe().model
    listed = Path.iterdir

    def refuse(directory: Path) -> Iterator[Path]:
        if directory == model:
            raise PermissionError(errno.EACCES, "Permission denied", str(directory))
        return listed(directory)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for look in (store.verify, store.collect_garbage):
        with pytest.raises(
            InputError, match=rf"{model} cannot be read \(Permission denied\): see to its perm"
        ):
            look()


def test_verify_sees_a_file_that_was_not_published(store: Store) -> None:
    artifact = made(store, recipe())
    (artifact.local / "weights" / "more.bin").write_bytes(b"?")
    assert store.verify() == {artifact.place: "weights/more.bin is no file of it: remove that"}
    assert store.find(recipe()).artifact == artifact


def test_verify_sees_a_damaged_pointer(store: Store) -> None:
    pointer = Path(made(store, recipe()).place).with_name("latest.json")
    pointer.write_text("garbage")
    [(place, says)] = store.verify().items()
    assert place == str(pointer) and "latest.json is damaged: remove it and run exported_graph again" in says


def test_large_files_are_hashed_again_only_if_their_time_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = made(store, recipe())
    monkeypatch.setattr("llama4_pipeline.artifacts.store._ALWAYS_HASHED_BELOW", 0)
    _overwrite_behind_the_clock(artifact)
    assert store.find(recipe()).artifact == artifact, "documented: only verify sees this"
    assert store.verify()
    _overwrite(artifact)
    assert store.find(recipe()).damage


def test_an_input_must_stand(store: Store) -> None:
    source = made(store, recipe("checkpoint"))
    _overwrite(source)
    with pytest.raises(InputError, match=r"checkpoint of tiny is damaged \(weights/a.bin has other"):
        store.get_or_make(recipe(), never, {"checkpoint": source})
    shutil.rmtree(source.local)
    with pytest.raises(InputError, match="checkpoint of tiny is gone: materialize checkpoint again"):
        store.get_or_make(recipe(), never, {"checkpoint": source})


def test_an_input_must_be_what_it_was(store: Store) -> None:
    source = made(store, recipe("checkpoint"))
    store.get_or_make(recipe("checkpoint"), writes("two"), anew=True)
    with pytest.raises(InputError, match="checkpoint of tiny was made anew meanwhile: run it again"):
        store.get_or_make(recipe(), never, {"checkpoint": source})


def test_linked_weights_exist_once_and_are_not_read_twice(store: Store) -> None:
    exported = made(store, recipe("exported_graph"))

    def link(out: Path) -> Mapping[str, Any]:
        link_or_copy(exported.directory / "weights", out / "weights")
        (out / "model.onnx").write_text("simplified")
        return {}

    simplified, _ = store.get_or_make(recipe("simplified_graph"), link, {"exported_graph": exported})
    names = [artifact.directory / "weights" / "a.bin" for artifact in (exported, simplified)]
    assert names[0].samefile(names[1])
    assert store.verify() == {}
    _overwrite(exported)
    assert store.find(recipe("simplified_graph")).damage, "the other name shows the damage too"


def test_a_group_may_share_a_store(store: Store) -> None:
    before = os.umask(0o002)
    try:
        made(store, recipe())
    finally:
        os.umask(before)
    locks = [path for path in (store.root / ".locks").rglob("*") if path.is_file()]
    assert locks and all(path.stat().st_mode & 0o060 == 0o060 for path in locks)


def test_garbage_is_what_is_not_latest(store: Store) -> None:
    shared = made(store, recipe(code_version="old"), "x" * 1000)

    def link(out: Path) -> Mapping[str, Any]:
        link_or_copy(shared.directory / "weights", out / "weights")
        (out / "model.onnx").write_text("new")
        return {}

    store.get_or_make(recipe(code_version="new"), link)
    leftover = shared.directory.with_name(f".scratch-{'0123' * 4}-dead")
    leftover.mkdir()
    (leftover / "half").write_text("half")
    gone = len("graph") + len("half") + (shared.directory / "manifest.json").stat().st_size
    assert store.collect_garbage() == Freed(artifacts=1, bytes=gone), "the linked weights live on"
    assert [artifact.manifest.recipe.code_version for artifact in store.artifacts()] == ["new"]


def test_what_others_keep_in_the_place_of_the_artifacts_is_left_alone(store: Store) -> None:
    made(store, recipe())
    theirs = [store.root / name for name in ("photos/2024/sea.jpg", "my photos/at the sea/all/1.jpg")]
    theirs += [store.root / "my photos/at the sea" / name for name in ("latest.json", f"{'0' * 16}/1.jpg")]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("irreplaceable")
    assert store.verify() == {} and len(list(store.artifacts())) == 1
    assert store.collect_garbage() == Freed(0, 0)
    assert all(file.read_text() == "irreplaceable" for file in theirs)


def test_where_no_store_is_nothing_is_sound(tmp_path: Path) -> None:
    for look in (Store(tmp_path / "mistyped").verify, Store(tmp_path / "mistyped").collect_garbage):
        with pytest.raises(InputError, match=r"mistyped: no store is there; LLAMA4_PIPELINE_ARTIFACTS names"):
            look()


def test_names_cannot_leave_the_store(store: Store) -> None:
    for name in ("../evil", "/etc", "a/b", "", ".hidden", "a\n"):
        with pytest.raises(ValidationError):
            recipe(model=name)
        with pytest.raises(ValidationError):
            store.latest(name, "exported_graph")
    for path in ("../evil", "/etc/passwd", "a/../../b", ""):
        with pytest.raises(ValidationError):
            FileRecord(path=path, bytes=1, sha256="0" * 64, modified_ns=0)
    for sha256 in ("../evil", "0" * 63, "A" * 64, f"{'0' * 64}\n"):
        with pytest.raises(ValidationError):
            FileRecord(path="weights", bytes=1, sha256=sha256, modified_ns=0)

    def escapes(out: Path) -> Mapping[str, Any]:
        (out / "link").symlink_to("/etc/passwd")
        return {}

    with pytest.raises(ValueError, match="link: an artifact holds plain files only"):
        store.get_or_make(recipe(), escapes)


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"file/store/\.locks/.* cannot be written .*LLAMA4_PIPELINE_ARTIFACTS"
    ):
        Store(tmp_path / "file" / "store").get_or_make(recipe(), lambda _: {})


def test_a_file_system_without_locks_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"store/\.locks/.* cannot be locked .*LLAMA4_PIPELINE_ARTIFACTS"):
        Store(tmp_path / "store").get_or_make(recipe(), lambda _: {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("1048576 requested and 0 written"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "numpy", "safetensors"],
)
def test_a_full_disk_is_an_input_error(store: Store, error: Exception) -> None:
    def full(out: Path) -> Mapping[str, Any]:
        raise error

    with pytest.raises(InputError, match=r"no space left for exported_graph in .*store gc"):
        store.get_or_make(recipe(), full)


def test_a_full_disk_is_an_input_error_where_an_artifact_is_reused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(store, recipe())
    made(store, recipe(code_version="2"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts_store, "write_durably", full)
    with pytest.raises(InputError, match=r"no space left for exported_graph in .*store gc"):
        store.get_or_make(recipe(), never)


_BUILDER = """
import sys, time
from pathlib import Path
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store

def make(out):
    (out / "half").write_text("half")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    (out / "whole").write_text("whole")
    return {}

artifact, made = Store(Path(sys.argv[1])).get_or_make(Recipe(stage="s", model="tiny", code_version="1"), make)
print("made" if made else "reused", flush=True)
"""


def _start_builder(store: Store, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _BUILDER, str(store.root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_builders_one_works_and_the_other_waits(store: Store) -> None:
    builders = [_start_builder(store, 1.0) for _ in range(2)]
    outputs = sorted(builder.communicate(timeout=60)[0].split() for builder in builders)
    assert outputs == [["building", "made"], ["reused"]]


@pytest.mark.parametrize("measured_first", [False, True])
def test_a_measurement_is_made_while_nothing_else_is(store: Store, measured_first: bool) -> None:
    others: list[Future[tuple[Artifact, bool]]] = []

    def begins(out: Path) -> Mapping[str, Any]:
        other = pool.submit(store.get_or_make, recipe("second"), writes("two"), alone=not measured_first)
        others.append(other)
        assert not wait([other], timeout=0.3).done
        return writes("one")(out)

    with ThreadPoolExecutor() as pool:
        store.get_or_make(recipe("first"), begins, alone=measured_first)
    [other] = others
    assert other.result() == (store.input_of("tiny", "second"), True)


def test_a_killed_builder_leaves_no_artifact_and_no_lock(store: Store) -> None:
    builder = _start_builder(store, 60.0)
    assert builder.stdout is not None and builder.stdout.readline() == "building\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    assert list(store.artifacts()) == []
    start = time.monotonic()
    artifact, was_made = store.get_or_make(Recipe(stage="s", model="tiny", code_version="1"), writes("one"))
    assert was_made and time.monotonic() - start < 5
    assert sorted(entry.name for entry in artifact.directory.parent.iterdir()) == sorted(
        [artifact.directory.name, "latest.json"]
    )


def test_what_is_being_read_is_not_collected(store: Store) -> None:
    old = made(store, recipe("checkpoint", code_version="old"))
    made(store, recipe("checkpoint", code_version="new"))

    def collects(out: Path) -> Mapping[str, Any]:
        assert store.collect_garbage().artifacts == 0
        return writes("one")(out)

    store.get_or_make(recipe(), collects, {"checkpoint": old})
    assert store.collect_garbage().artifacts == 1


def test_the_store_needs_no_heavy_library() -> None:
    program = (
        "import sys, llama4_pipeline.artifacts.store, llama4_pipeline.artifacts.code_version\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'pandas', 'dagster') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
