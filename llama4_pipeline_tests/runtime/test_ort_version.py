"""The floor of ONNX Runtime's version."""

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


def test_this_environment_passes():
    assert require_onnxruntime() in installed_onnxruntime().values()
