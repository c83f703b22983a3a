"""What leaves a library of CUDA kernels, and that the wheel around it stays whole."""

import struct
import zipfile

import pytest

from llama4_pipeline_tests.benchmark.fat_binaries import keep_architecture, take_out_others


def _fat_binary(*architectures: int) -> bytes:
    codes = b"".join(
        struct.pack("<HHIQ12xI", 2, 257, 64, 8, architecture).ljust(64, b"\1") + bytes([architecture]) * 8
        for architecture in architectures
    )
    return b"\x50\xed\x55\xba" + struct.pack("<HHQ", 1, 16, len(codes)) + codes


def test_code_of_others_goes_where_the_architecture_has_its_own():
    chance = b"\x50\xed\x55\xba" + b"\xff" * 20
    before = chance + b"host" + _fat_binary(80, 90, 120) + _fat_binary(120) + b"host"
    library = bytearray(before)
    assert take_out_others(library, 90) == 16
    assert library == before.replace(b"\x50" * 8, bytes(8)).replace(b"\x78" * 8, bytes(8), 1)


def test_a_wheel_keeps_its_files_and_names_the_new_sum(tmp_path):
    wheel = tmp_path / "kernels-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("kernels/cuda.so", _fat_binary(80, 90))
        out.writestr("kernels/__init__.py", "x = 1")
        out.writestr("kernels-1.dist-info/RECORD", "kernels/cuda.so,sha256=old,1\nkernels/__init__.py,,\n")
    assert keep_architecture(wheel, "cuda.so", 90) == 8
    with zipfile.ZipFile(wheel) as kept:
        assert kept.namelist() == ["kernels/cuda.so", "kernels/__init__.py", "kernels-1.dist-info/RECORD"]
        assert kept.read("kernels/cuda.so") == _fat_binary(80, 90).replace(b"\x50" * 8, bytes(8))
        first, second = kept.read("kernels-1.dist-info/RECORD").decode().splitlines()
    assert first.startswith("kernels/cuda.so,sha256=") and first.endswith(f",{len(_fat_binary(80, 90))}")
    assert (second, list(tmp_path.iterdir())) == ("kernels/__init__.py,,", [wheel])


def test_a_wheel_without_that_code_is_named(tmp_path):
    wheel = tmp_path / "kernels-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("kernels/cuda.so", _fat_binary(80))
    with pytest.raises(ValueError, match="no code of sm_90 beside that of others"):
        keep_architecture(wheel, "cuda.so", 90)
    with pytest.raises(ValueError, match=r"holds no other\.so"):
        keep_architecture(wheel, "other.so", 90)
