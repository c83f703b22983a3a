"""Fetches the locked wheels for a machine with a GPU and no network, large ones cut into pieces."""

import argparse
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from llama4_pipeline_tests.benchmark.fat_binaries import keep_architecture

_ROOT = Path(__file__).parents[2]
_LOCKED = _ROOT / "constraints.txt"
# What the benchmark imports; PyTorch with its CUDA libraries has to be there.
_IMPORTED = (
    "accelerate", "click", "flatbuffers", "jinja2", "ml-dtypes", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxsim",
    "optimum", "protobuf", "psutil", "pydantic", "safetensors", "threadpoolctl", "tokenizers", "transformers",
)  # fmt: skip
_THERE_WITH_PYTORCH = {"torch"}
_GPU_PACKAGES = ("onnxruntime-gpu>=1.31.1",)
_KERNELS = "libonnxruntime_providers_cuda.so"
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)] + [
    "manylinux2014_x86_64"
]


def main() -> int:
    """Downloads, then cuts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", required=True, help="version there, 3.12")
    parser.add_argument("--has", default="", help="packages that are there, separated by commas")
    parser.add_argument("--piece-mb", type=int, required=True)
    parser.add_argument("--architecture", type=int, help="of the GPU there, 90: leaves others' code out")
    asked = parser.parse_args()
    there = {normalized(name) for name in asked.has.split(",") if name}
    fetch(wanted(_LOCKED.read_text(), there), asked.python, asked.out)
    if asked.architecture:
        for wheel in asked.out.glob("onnxruntime_gpu-*.whl"):
            keep_architecture(wheel, _KERNELS, asked.architecture)
    for wheel in sorted(asked.out.glob("*.whl")):
        cut(wheel, asked.piece_mb * 10**6)
    return 0


def wanted(locked: str, there: set[str]) -> list[str]:
    """The requirements of a GPU machine, from the lines of constraints.txt and what it has (normalized names)."""
    needed = with_requirements(_IMPORTED) - there - _THERE_WITH_PYTORCH
    missing = [line for line in locked.splitlines() if normalized(line.split("==")[0]) in needed]
    return missing + [each for each in _GPU_PACKAGES if normalized(each.split(">=")[0]) not in there]


def with_requirements(names: Iterable[str]) -> set[str]:
    """Distributions of this environment and all that they require without extras, but for PyTorch's, normalized."""
    found: set[str] = set()
    open_ones = [normalized(name) for name in names]
    while open_ones:
        name = open_ones.pop()
        if name not in found:
            found.add(name)
            if name not in _THERE_WITH_PYTORCH:
                open_ones += _required_by(name)
    return found


def _required_by(name: str) -> list[str]:
    wanted = map(Requirement, importlib.metadata.requires(name) or [])
    return [
        normalized(each.name) for each in wanted if not each.marker or each.marker.evaluate({"extra": ""})
    ]


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def fetch(requirements: list[str], python: str, out: Path) -> None:
    """Downloads wheels of another Python on Linux, without what they need: the lock names all of it."""
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(out),
    ]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run([*command, *requirements], check=True)


def cut(file: Path, piece_bytes: int) -> list[Path]:
    """Cuts a file that is larger than a piece into FILE.00, FILE.01, ... in place; `cat FILE.*` joins them."""
    if file.stat().st_size <= piece_bytes:
        return [file]
    pieces = []
    with file.open("rb") as stream:
        while part := stream.read(piece_bytes):
            pieces.append(file.with_name(f"{file.name}.{len(pieces):02d}"))
            pieces[-1].write_bytes(part)
    file.unlink()
    return pieces


if __name__ == "__main__":
    sys.exit(main())
