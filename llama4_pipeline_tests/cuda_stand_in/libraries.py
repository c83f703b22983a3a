"""Builds the stand-ins: a library for each that the CUDA provider is linked to, with every function that it calls.

A few functions answer (`answers.c`), creators hand out a block of memory, all others do nothing and report success.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

_WHEELS = ("onnxruntime-gpu==1.31.1", "nvidia-cuda-runtime==13.0.96")
_HERE = Path(__file__).parent
_CACHE = Path(__file__).parents[2] / ".cache" / "cuda-stand-in"
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
_HEADER = "nvidia/cu13/include/driver_types.h"
_NEEDED = re.compile(r"Shared library: \[(libcu\w+\.so\.\d+)\]")


def environment() -> dict[str, str]:
    """Of a process that imports onnxruntime-gpu and finds the stand-ins; wheels are fetched the first time."""
    site, libraries = _CACHE / "site", _CACHE / "libraries"
    if not (site / _PROVIDER).is_file() or not (site / _HEADER).is_file():
        _unpack_wheels(site)
    _build(site, libraries)
    return os.environ | {"PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(libraries)}


def _unpack_wheels(site: Path) -> None:
    wheels = _CACHE / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
    subprocess.run([*command, "--dest", str(wheels), *_WHEELS], check=True)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)


def _build(site: Path, libraries: Path) -> None:
    libraries.mkdir(exist_ok=True)
    called = _called(site / _PROVIDER)
    answers = (_HERE / "answers.c").read_text()
    for library in _NEEDED.findall(_told("readelf", "-d", str(site / _PROVIDER))):
        functions = "\n".join(
            _empty(name) for name in called.get(library, ()) if not re.search(rf"\b{name}\(", answers)
        )
        source, versions = libraries / f"{library}.c", libraries / f"{library}.map"
        source.write_text(f"{_device_properties(site / _HEADER)}\n{answers}\n{functions}\n")
        versions.write_text(f"{library} {{ global: *; }};\n")
        words = ["-w", "-std=gnu89", "-shared", "-fPIC", str(source), "-o", str(libraries / library)]
        words += [f"-Wl,-soname,{library}"]
        if library != "libcuda.so.1":  # the one whose symbols have no version
            words += [f"-Wl,--version-script={versions}"]
        subprocess.run(["cc", *words], check=True)


def _called(provider: Path) -> dict[str, list[str]]:
    """Functions by library; those without a version are the driver's."""
    found: dict[str, list[str]] = {}
    for line in _told("nm", "-D", "--undefined-only", str(provider)).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if re.match(r"(__)?cu[A-Zdb]", name):
            found.setdefault(library or "libcuda.so.1", []).append(name)
    return found


def _empty(name: str) -> str:
    if "Create" in name:
        return f"int {name}(void **made) {{ *made = calloc(1, 64); return 0; }}"
    if re.search(r"Get\w*(Name|String)$", name):
        return f'const char *{name}(int code) {{ return "stand-in"; }}'
    return f"int {name}() {{ return 0; }}"


def _device_properties(header: Path) -> str:
    text = header.read_text()
    begin = text.index("struct __device_builtin__ cudaDeviceProp")
    properties = text[begin : text.index("};", begin) + 2].replace("__device_builtin__ ", "")
    return f"#include <stddef.h>\ntypedef struct {{ char bytes[16]; }} cudaUUID_t;\n{properties}"


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
