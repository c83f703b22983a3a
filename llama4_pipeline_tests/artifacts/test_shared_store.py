"""The shared store: two machines, each with its own copies, and one object store between them."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llama4_pipeline.artifacts import lease, shared_store
from llama4_pipeline.artifacts.artifact import Artifact
from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.artifacts.objects import Objects
from llama4_pipeline.artifacts.shared_store import SharedStore
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.errors import InputError
from llama4_pipeline_tests.artifacts.test_store import never, recipe, writes


@pytest.fixture
def here(url: str, tmp_path: Path) -> SharedStore:
    return SharedStore(url, tmp_path / "here")


@pytest.fixture
def there(url: str, tmp_path: Path) -> SharedStore:
    return SharedStore(url, tmp_path / "there")


def files_of(artifact: Artifact) -> dict[str, bytes]:
    directory = artifact.directory
    return {record.path: (directory / record.path).read_bytes() for record in artifact.manifest.files}


def bytes_below(directory: Path) -> int:
    """What its files take, each counted once whatever its names."""
    states = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return sum({state.st_ino: state.st_size for state in states}.values())


def test_what_one_machine_made_another_finds(here: SharedStore, there: SharedStore, tmp_path: Path) -> None:
    first, was_made = here.get_or_make(recipe(), writes("one", {"nodes": 7}))
    found, made_again = there.get_or_make(recipe(), never)
    assert (was_made, made_again) == (True, False)
    assert not found.local.exists(), "a hit moves no file"
    assert found.read("model.onnx") == b"graph" and not found.local.exists()
    assert files_of(found) == files_of(first) == {"model.onnx": b"graph", "weights/a.bin": b"one"}
    assert found.manifest == first.manifest and found.place == first.place
    assert there.input_of("tiny", "exported_graph") == found
    assert here.verify() == there.verify() == {}
    local, _ = Store(tmp_path / "local").get_or_make(recipe(), writes("one"))
    assert (local.manifest.key, local.digest) == (first.manifest.key, first.digest)
    assert first.place == f"{here.place}/tiny/exported_graph/{local.manifest.key[:16]}"


@pytest.mark.parametrize("call", ["verify", "collect_garbage", "artifacts"])
def test_a_store_that_refuses_is_named(here: SharedStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    here.get_or_make(recipe(), writes("one"))

    def refuse(*_: Any) -> None:
        raise PermissionError("Access\nDenied")

    monkeypatch.setattr(here._objects._files, "find", refuse)
    with pytest.raises(InputError, match=f"{here.place} cannot be used for artifacts: Access Denied"):
        list(getattr(here, call)() or ())


@pytest.mark.parametrize("method", ["pipe_file", "put_file"])
def test_a_place_that_vanished_is_named(
    here: SharedStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def vanished(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(here._objects._files, method, vanished)
    with pytest.raises(InputError, match=f"{here.place} cannot be used for artifacts: The specified bucket"):
        here.get_or_make(recipe(), writes("one"))


def test_a_full_disk_of_copies_is_named(
    here: SharedStore, there: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.get_or_make(recipe(), writes("one"))
    artifact, _ = there.get_or_make(recipe(), never)

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(there._objects._files, "get_file", fill)
    with pytest.raises(
        InputError, match=f"no space left for exported_graph in {there.root}: .*PIPELINE_COPIES"
    ):
        _ = artifact.directory


def test_inputs_come_to_the_machine_that_reads_them(here: SharedStore, there: SharedStore) -> None:
    exported, _ = here.get_or_make(recipe("exported_graph"), writes("weights"))

    def link(out: Path) -> Mapping[str, Any]:
        directory = there.input_of("tiny", "exported_graph").directory
        link_or_copy(directory / "weights", out / "weights")
        (out / "model.onnx").write_text("simplified")
        return {}

    simplified, _ = there.get_or_make(recipe("simplified_graph"), link, {"exported_graph": exported})
    assert len(Objects(here.place).names(".files")) == 3, "the weights of both graphs are one object"
    copies = [here.input_of("tiny", stage).directory for stage in ("exported_graph", "simplified_graph")]
    assert (copies[0] / "weights" / "a.bin").samefile(copies[1] / "weights" / "a.bin")
    assert files_of(here.input_of("tiny", "simplified_graph")) == files_of(simplified)


def test_a_copy_gives_way_to_what_was_made_anew(here: SharedStore, there: SharedStore) -> None:
    here.get_or_make(recipe(), writes("monday"))
    assert files_of(there.input_of("tiny", "exported_graph"))["weights/a.bin"] == b"monday"
    here.get_or_make(recipe(), writes("tuesday"), anew=True)
    assert files_of(there.input_of("tiny", "exported_graph"))["weights/a.bin"] == b"tuesday"
    assert list(there.verify()) == []


def test_a_damaged_copy_is_brought_again(here: SharedStore, there: SharedStore) -> None:
    here.get_or_make(recipe(), writes("one"))
    copy = there.input_of("tiny", "exported_graph")
    (copy.directory / "weights" / "a.bin").write_text("damaged")
    assert files_of(copy)["weights/a.bin"] == b"one"


def test_nothing_is_visible_before_the_manifest(
    here: SharedStore, there: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []
    upload = Objects.upload

    def breaks(objects: Objects, file: Path, name: str) -> None:
        if uploaded:
            raise OSError("the network is gone")
        upload(objects, file, name)
        uploaded.append(name)

    monkeypatch.setattr(Objects, "upload", breaks)
    with pytest.raises(OSError, match="the network is gone"):
        here.get_or_make(recipe(), writes("one"))
    assert (
        uploaded and there.find(recipe()).artifact is None and there.latest("tiny", "exported_graph") is None
    )
    monkeypatch.undo()
    _, was_made = there.get_or_make(recipe(), writes("one"))
    assert was_made and here.verify() == {}


def _make_without_upload(store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(objects: Objects, file: Path, name: str) -> None:
        raise OSError("the token has expired")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "upload", breaks)
        with pytest.raises(OSError, match="the token has expired"):
            store.get_or_make(recipe(), writes("one"))


def test_what_could_not_be_uploaded_is_uploaded_later(
    here: SharedStore, there: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_without_upload(here, monkeypatch)
    finished, was_made = here.get_or_make(recipe(), never)
    found, _ = there.get_or_make(recipe(), never)
    assert not was_made and files_of(found) == files_of(finished)
    Objects(here.place).remove([f"tiny/exported_graph/{finished.local.name}/manifest.json"])
    _, was_made = here.get_or_make(recipe(), writes("two"))
    assert was_made, "what was uploaded once and is deleted there is made again"


def test_what_is_being_uploaded_is_not_collected(here: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Objects.upload

    def collects(objects: Objects, file: Path, name: str) -> None:
        assert here.collect_garbage().artifacts == 0
        upload(objects, file, name)

    monkeypatch.setattr(Objects, "upload", collects)
    _, was_made = here.get_or_make(recipe(), writes("one"))
    assert was_made and here.verify() == {}


def test_what_was_never_uploaded_is_collected_with_its_mark_after_a_day(
    here: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_without_upload(here, monkeypatch)
    here.collect_garbage()
    shelf = here.root / "tiny" / "exported_graph"
    assert len(list(shelf.iterdir())) == 2, "hours of work may wait there"
    [mark] = shelf.glob(".unsent-*")
    os.utime(mark, (0, 0))
    here.collect_garbage()
    assert list(shelf.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"o"])
def test_damage_is_seen_named_and_repaired(here: SharedStore, content: bytes | None) -> None:
    artifact, _ = here.get_or_make(recipe(), writes("one"))
    objects = Objects(here.place)
    [record] = [record for record in artifact.manifest.files if record.path == "weights/a.bin"]
    says = "weights/a.bin is missing" if content is None else "weights/a.bin has 1 bytes instead of 3"
    objects.remove([f".files/{record.sha256}"])
    if content is not None:
        objects.write(f".files/{record.sha256}", content)
    assert here.find(recipe()).damage == says
    assert here.verify() == {artifact.place: says}
    repaired, was_made = here.get_or_make(recipe(), writes("one"))
    assert was_made and repaired.digest == artifact.digest and here.verify() == {}


def swap_bytes(artifact: Artifact, place: str) -> None:
    """Damages every file of an artifact in the object store; sizes stay."""
    for record in artifact.manifest.files:
        content = Objects(place).read(f".files/{record.sha256}")
        assert content is not None
        Objects(place).write(f".files/{record.sha256}", content[::-1])


def test_verify_sees_a_damaged_pointer(here: SharedStore) -> None:
    here.get_or_make(recipe(), writes("one"))
    Objects(here.place).write(f"{recipe().model}/{recipe().stage}/latest.json", b"garbage")
    [(place, says)] = here.verify().items()
    assert place == f"{here.place}/{recipe().model}/{recipe().stage}/latest.json"
    assert "latest.json is damaged: remove it" in says


def test_other_content_of_the_same_size_is_found_by_verify(here: SharedStore) -> None:
    artifact, _ = here.get_or_make(recipe(), writes("one"))
    swap_bytes(artifact, here.place)
    last = artifact.manifest.files[-1]
    name = f"{here.place}/.files/{last.sha256}"
    assert here.verify() == {
        artifact.place: f"{last.path} has other content than was published: remove {name}"
    }


@pytest.mark.parametrize("ask", [files_of, lambda artifact: artifact.read("model.onnx")])
def test_other_content_of_the_same_size_is_made_again(
    here: SharedStore, there: SharedStore, ask: Callable[[Artifact], object]
) -> None:
    """Sizes are all that a hit compares: damage shows when the content comes, and then leaves the store."""
    artifact, _ = here.get_or_make(recipe(), writes("one"))
    swap_bytes(artifact, here.place)
    says = f"model.onnx of {artifact.place} was damaged and is removed: materialize exported_graph again"
    with pytest.raises(InputError, match=says):
        ask(there.input_of("tiny", "exported_graph"))
    repaired, was_made = there.get_or_make(recipe(), writes("one"))
    assert was_made and repaired.digest == artifact.digest
    assert there.verify() == {}, "every file was uploaded, not that one alone"


def test_garbage_is_old_and_not_latest(here: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    here.get_or_make(recipe(code_version="old"), writes("x" * 1000))
    newer, _ = here.get_or_make(recipe(code_version="new"), writes("one"))
    assert here.collect_garbage().artifacts == 0, "another machine may be about to read it"
    monkeypatch.setattr(shared_store, "_SPARED", timedelta(0))
    freed = here.collect_garbage()
    assert (freed.artifacts, freed.bytes) == (1, 1000)
    assert [artifact.manifest.recipe.code_version for artifact in here.artifacts()] == ["new"]
    assert here.verify() == {} and files_of(newer)


def test_what_others_keep_below_the_url_is_left_alone(
    here: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_store, "_SPARED", timedelta(0))
    here.get_or_make(recipe(), writes("one"))
    Objects(here.place).write("web/shop/v1/manifest.json", b"irreplaceable")
    assert here.verify() == {} and here.collect_garbage().artifacts == 0
    assert Objects(here.place).read("web/shop/v1/manifest.json") == b"irreplaceable"


def test_what_this_machine_gets_back_is_counted(here: SharedStore) -> None:
    here.get_or_make(recipe(code_version="old"), writes("x" * 1000))
    here.get_or_make(recipe(code_version="new"), writes("one"))
    before = bytes_below(here.root)
    freed = here.collect_garbage()
    assert freed.artifacts == 0, "it is in the object store still"
    assert freed.bytes == before - bytes_below(here.root) > 1000


def test_of_two_machines_one_works_and_the_other_waits(
    here: SharedStore, there: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_LOOKED_SECONDS", 0.05)
    outcomes = []

    def slow(out: Path) -> Mapping[str, Any]:
        time.sleep(0.5)
        return writes("one")(out)

    def run(store: SharedStore) -> None:
        outcomes.append(store.get_or_make(recipe(), slow)[1])

    threads = [threading.Thread(target=run, args=(store,)) for store in (here, there)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, True]
    assert Objects(here.place).names(".leases") == []


@pytest.mark.parametrize("machine", ["this one", "another"])
def test_a_dead_machine_does_not_hold_a_lease_for_ever(
    here: SharedStore, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_LOOKED_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_DEAD_SECONDS", 0.5 if machine == "another" else 60.0)
    monkeypatch.setattr(lease, "_RENEWED_SECONDS", 60.0)
    objects = Objects(here.place)
    holder = shared_store.machine_name(here.root) if machine == "this one" else "another:/copies"
    name = f".leases/tiny/exported_graph/{recipe().key()[:16]}"
    objects.write(name, f"{holder} killed 1".encode())
    start = time.monotonic()
    _, was_made = here.get_or_make(recipe(), writes("one"))
    assert was_made and time.monotonic() - start < 10
    assert objects.names(".leases") == []


def test_two_that_make_the_same_at_once_leave_one_whole_artifact(
    here: SharedStore, there: SharedStore
) -> None:
    """What happens when a lease was lost: the measurements differ, the files are never mixed."""

    def measures(text: str, meanwhile: Any = None) -> Any:
        def make(out: Path) -> Mapping[str, Any]:
            if meanwhile:
                meanwhile()
            return writes(text)(out)

        return make

    def by_the_other() -> None:
        Objects(here.place).remove(Objects(here.place).names(".leases"))
        there.get_or_make(recipe(), measures("theirs"))

    here.get_or_make(recipe(), measures("ours", by_the_other))
    assert here.verify() == {}
    assert files_of(there.input_of("tiny", "exported_graph")) == files_of(
        here.input_of("tiny", "exported_graph")
    )


def test_a_directory_below_a_url_is_made(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}/new/place")
    objects.write("a/b", b"content")
    assert Objects(f"file://{tmp_path}/new/place").read("a/b") == b"content"


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nosuch://bucket cannot be used for artifacts"):
        SharedStore("nosuch://bucket", tmp_path)


@pytest.mark.cluster
def test_a_bucket_that_does_not_exist_is_named(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s3://nosuch/x cannot be used for artifacts: The specified bucket"):
        SharedStore("s3://nosuch/x", tmp_path)


def test_two_processes_of_a_machine_keep_the_same_files_at_once(url: str, tmp_path: Path) -> None:
    """Two models of one local checkpoint: their files are hard links of the same."""
    source = tmp_path / "checkpoint"
    source.mkdir()
    for index in range(60):
        (source / f"{index}.safetensors").write_text(f"weights {index}")

    def link(out: Path) -> Mapping[str, Any]:
        link_or_copy(source, out / "checkpoint")
        return {}

    def work(model: str, code: int) -> Artifact:
        store = SharedStore(url, tmp_path / "here")
        return store.get_or_make(recipe(model=model, code_version=str(code)), link)[0]

    with ThreadPoolExecutor(2) as pool:
        for code in range(5):
            made = [pool.submit(work, model, code) for model in ("short", "long")]
            assert all(len(each.result().manifest.files) == 60 for each in made)
    assert not list((tmp_path / "here" / ".files").glob(".*")), "no scratch name is left"


def test_what_a_run_takes_up_during_a_collection_stands(
    here: SharedStore, there: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = recipe(code_version="old")
    for each in (old, recipe(code_version="new"), recipe("simplified_graph")):
        here.get_or_make(each, writes(each.code_version))
    monkeypatch.setattr(shared_store, "_SPARED", timedelta(0))
    published = here._published()

    def listed() -> Iterator[str]:
        for index, shelf in enumerate(sorted(published, key=lambda shelf: old.key()[:16] not in shelf)):
            if index == 1:
                there.get_or_make(old, writes("old"))
            yield shelf

    monkeypatch.setattr(here, "_published", listed)
    here.collect_garbage()
    assert there.input_of("tiny", "exported_graph").manifest.recipe == old
