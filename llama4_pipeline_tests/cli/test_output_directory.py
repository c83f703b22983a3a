"""Nothing half-written: the directory appears whole, or no trace of the attempt is left."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.cli.output_directory import output_directory
from llama4_pipeline.errors import InputError
from llama4_pipeline_tests.cli.small_disk import small_disk


def write_graph(directory: Path, size: int = 100) -> None:
    (directory / "model.onnx").write_bytes(b"x" * size)


def test_result_becomes_the_output(tmp_path: Path) -> None:
    with output_directory(tmp_path / "out") as result:
        write_graph(result)
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_result_has_the_permissions_of_an_ordinary_directory(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with output_directory(tmp_path / "out") as result:
        write_graph(result)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_empty_directory_is_accepted(tmp_path: Path) -> None:
    """And stays what it was: a shell may stand in it, and its mode and group were given on purpose."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o2770)
    before = (tmp_path / "out").stat()
    with output_directory(tmp_path / "out") as result:
        write_graph(result)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    after = (tmp_path / "out").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_symbolic_link_to_an_empty_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with output_directory(tmp_path / "out") as result:
        write_graph(result)
    assert (tmp_path / "real" / "model.onnx").is_file()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(143)])
def test_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), output_directory(tmp_path / "a" / "b" / "out") as result:
        write_graph(result)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_an_empty_directory_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), output_directory(tmp_path / "out") as result:
        write_graph(result)
        raise RuntimeError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_directory_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_graph(tmp_path / "out", 7)
    with pytest.raises(InputError, match="is not empty"), output_directory(tmp_path / "out"):
        pytest.fail("the work must not start")
    assert (tmp_path / "out" / "model.onnx").stat().st_size == 7


def test_another_that_was_quicker_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is not empty"), output_directory(out) as slower:
        with output_directory(out) as quicker:
            (quicker / "quicker").touch()
        write_graph(slower)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "quicker"]


def test_another_that_was_quicker_in_an_empty_directory_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="is not empty"), output_directory(out) as result:
        write_graph(result)
        write_graph(out, 7)
    assert [(path.name, path.stat().st_size) for path in out.iterdir()] == [("model.onnx", 7)]


def test_an_interrupt_while_an_empty_directory_is_filled_leaves_it_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, renamed = tmp_path / "out", Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        renamed.append(path)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    out.mkdir()
    with pytest.raises(KeyboardInterrupt), output_directory(out) as result:
        write_graph(result)
        (result / "manifest.json").touch()
        monkeypatch.setattr(Path, "rename", interrupted)
    assert len(renamed) > 2
    assert list(out.iterdir()) == []


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), output_directory(tmp_path / "file"):
        pytest.fail("the work must not start")
    with pytest.raises(InputError, match="Not a directory"), output_directory(tmp_path / "file" / "out"):
        pytest.fail("the work must not start")


def test_space_is_checked_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"1,000,000 GB needed, .* free"),
        output_directory(tmp_path / "out", needed_bytes=10**15),
    ):
        pytest.fail("the work must not start")
    assert list(tmp_path.iterdir()) == []


def write_with_python(file: Path) -> None:
    file.write_bytes(bytes(4 << 20))


def write_with_numpy(file: Path) -> None:
    np.zeros(4 << 20, dtype=np.uint8).tofile(file)


def write_with_safetensors(file: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(4 << 20, dtype=np.uint8)}, file)


@pytest.mark.parametrize("write", [write_with_python, write_with_numpy, write_with_safetensors])
def test_full_disk_is_an_input_error_with_figures(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", kilobytes=1024) as disk:
        with (
            pytest.raises(InputError, match=r"more than 1\.05 MB needed, 1\.05 MB free"),
            output_directory(disk / "out") as result,
        ):
            write(result / "model.onnx.data")
        assert list(disk.iterdir()) == []


def test_mount_point_is_filled_in_place(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=1024) as disk:
        with pytest.raises(RuntimeError), output_directory(disk) as result:
            write_graph(result)
            raise RuntimeError("broken")
        assert list(disk.iterdir()) == []
        with output_directory(disk) as result:
            write_graph(result)
        assert [path.name for path in disk.iterdir()] == ["model.onnx"]
