"""The floor of ONNX Runtime's version."""

import sys
from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.runtime.ort_version import installed_onnxruntime, require_onnxruntime


@pytest.mark.parametrize("version", ["1.31.1", "1.32.0", "1.33.0.dev20261101", "2.0"])
def test_new_enough(version):
    assert require_onnxruntime({"onnxruntime": version}) == version


@pytest.mark.parametrize("version", ["1.31.0", "1.30.2", "1.9.0", "0.99"])
def test_older_is_refused_with_the_remedy(version):
    with pytest.raises(InputError, match=rf"onnxruntime-gpu {version}.*install onnxruntime-gpu>=1\.31\.1"):
        require_onnxruntime({"onnxruntime-gpu": version})


def test_none_and_both_are_refused():
    with pytest.raises(InputError, match="not installed"):
        require_onnxruntime({})
    with pytest.raises(InputError, match="both installed"):
        require_onnxruntime({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"})


def test_only_what_import_takes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for the GPU in a directory before the environment's own."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    metadata = tmp_path / "onnxruntime_gpu-1.99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.99.0\n")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_onnxruntime() == {"onnxruntime-gpu": "1.99.0"}


def test_one_built_from_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert len(installed_onnxruntime()) == 1


def test_this_environment_passes():
    assert require_onnxruntime() in installed_onnxruntime().values()
