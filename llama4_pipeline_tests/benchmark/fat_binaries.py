"""Takes machine code for other GPUs out of a library of CUDA kernels, so that its wheel goes through a narrow way.

A fat binary holds the same kernels for several architectures, and the driver looks into the one that it runs alone. The
code of the others is overwritten with zeros, which take no room in a wheel; nothing moves.

The layout is NVIDIA's and not published; the fields used here were read off ONNX Runtime's library, built with CUDA 13.
"""

import base64
import hashlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x50\xed\x55\xba"
_HEADER = struct.Struct("<4sHHQ")  # magic, version, bytes of this header, bytes of what follows
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, bytes of code, architecture


@dataclass(frozen=True)
class _Code:
    begin: int
    end: int
    architecture: int


def keep_architecture(wheel: Path, library: str, architecture: int) -> int:
    """Rewrites a wheel whose library keeps the code of one architecture.

    Args:
        wheel: the file; replaced.
        library: end of the library's path in it.
        architecture: 90 is that of compute capability 9.0.

    Returns:
        Bytes of code taken out.

    Raises:
        ValueError: no such library, or it holds no code of that architecture.
    """
    new = wheel.with_name(f".{wheel.name}.new")
    with zipfile.ZipFile(wheel) as old:
        path = next((name for name in old.namelist() if name.endswith(library)), None)
        if path is None:
            raise ValueError(f"{wheel} holds no {library}")
        contents = bytearray(old.read(path))
        taken = take_out_others(contents, architecture)
        if not taken:
            raise ValueError(f"{library} of {wheel} holds no code of sm_{architecture} beside that of others")
        with zipfile.ZipFile(new, "w") as out:
            for entry in old.infolist():
                data = bytes(contents) if entry.filename == path else old.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    data = _recorded(data.decode(), path, contents).encode()
                out.writestr(entry, data, zipfile.ZIP_LZMA)
    new.replace(wheel)
    return taken


def take_out_others(library: bytearray, architecture: int) -> int:
    """Overwrites the code of other architectures wherever that of the one stands beside it; returns the bytes."""
    taken = 0
    for codes in _fat_binaries(library):
        if any(code.architecture == architecture for code in codes):
            for code in codes:
                if code.architecture != architecture:
                    library[code.begin : code.end] = bytes(code.end - code.begin)
                    taken += code.end - code.begin
    return taken


def _fat_binaries(library: bytearray) -> Iterator[list[_Code]]:
    at = library.find(_MAGIC)
    while at >= 0:
        _, _, header_bytes, following = _HEADER.unpack_from(library, at)
        end = at + header_bytes + following
        if header_bytes == _HEADER.size and end <= len(library):
            yield _codes(library, at + header_bytes, end)
            at = library.find(_MAGIC, end)
        else:  # four bytes that happen to be the same
            at = library.find(_MAGIC, at + 1)


def _codes(library: bytearray, at: int, end: int) -> list[_Code]:
    found = []
    while at < end:
        _, _, header_bytes, code_bytes, architecture = _ENTRY.unpack_from(library, at)
        begin = at + header_bytes
        at = begin + code_bytes
        found.append(_Code(begin, at, architecture))
    return found


def _recorded(record: str, path: str, contents: bytearray) -> str:
    """The wheel's list of files with the new sum of one."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(contents).digest()).rstrip(b"=").decode()
    lines = record.splitlines()
    return "".join(
        f"{path},sha256={digest},{len(contents)}\n" if line.startswith(f"{path},") else f"{line}\n"
        for line in lines
    )
