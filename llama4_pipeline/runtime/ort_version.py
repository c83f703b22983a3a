"""Which ONNX Runtime may run our graphs. Reads package metadata only: importing this starts nothing."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from llama4_pipeline.errors import InputError

MINIMUM = (1, 31, 1)
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def installed_onnxruntime() -> dict[str, str]:
    """The ONNX Runtime packages whose files `import onnxruntime` takes: distribution name -> version.

    Another in a directory that Python looks into later does not count. One that is built from source names no place.
    """
    module = importlib.util.find_spec("onnxruntime")
    if module is None or module.origin is None:
        return {}
    imported = Path(module.origin).parent.resolve()
    versions: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions[name] = distribution.version
        if Path(str(distribution.locate_file("onnxruntime"))).resolve() == imported:
            taken[name] = distribution.version
    return taken or versions


def require_onnxruntime(installed: Mapping[str, str] | None = None) -> str:
    """Returns the installed version of ONNX Runtime if it is one that computes Llama 4 right.

    Versions before 1.28 compute SwiGLU experts by another formula without an error, those before 1.31.1 lack the
    fast quantized expert kernels.

    Args:
        installed: distribution name -> version; None asks the environment.

    Raises:
        InputError: none installed, both installed (they overwrite each other's files), or too old.
    """
    found = installed_onnxruntime() if installed is None else dict(installed)
    if not found:
        raise InputError(
            "ONNX Runtime is not installed; install llama4-pipeline[cpu] or llama4-pipeline[gpu]"
        )
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(found)} are both installed and overwrite each other; uninstall both, install one"
        )
    name, version = next(iter(found.items()))
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None or tuple(int(part or 0) for part in numbers.groups()) < MINIMUM:
        floor = ".".join(map(str, MINIMUM))
        raise InputError(
            f"{name} {version} computes Llama 4 experts wrongly or slowly; install {name}>={floor}"
        )
    return version
