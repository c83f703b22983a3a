"""Where weights come from: one seam, read tensor by tensor and in pieces of tensors, never a whole model.

A source hands out the tensors of `Architecture.checkpoint_tensors()` under their canonical names, from
safetensors files or made on demand. Nothing here imports torch; bfloat16 is the dtype of ml_dtypes.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import EMBEDDING, LM_HEAD, Architecture
from llama4_pipeline.llama4.safetensors_file import (
    WEIGHT_DTYPES,
    StoredTensor,
    listed,
    read_header,
    without_duplicates,
)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth")
_PIECE_BYTES = 1 << 26
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


class WeightSource(Protocol):
    """Hands out a model's tensors one at a time; only what was asked for is in memory."""

    def names(self) -> tuple[str, ...]:
        """Canonical names in the order of the model."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor as stored: float32, float16 or ml_dtypes.bfloat16."""

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A fresh array of the stored dtype: the tensor, or the given rows (step 1) of axis 0."""


class SafetensorsSource:
    """The weights of a checkpoint directory: `model.safetensors`, or shards under an index.

    Index and headers are checked against the architecture when it is made; no weight is read before.
    """

    def __init__(self, directory: Path, architecture: Architecture) -> None:
        """Opens a directory.

        Args:
            directory: Holds the safetensors files. Names of `Llama4ForCausalLM`, or those of the language
                model inside `Llama4ForConditionalGeneration`; its vision tensors are left alone.
            architecture: What the tensors must be.

        Raises:
            InputError: A file is missing, broken or outside the directory, the checkpoint is pickled, or
                tensors are missing, extra, duplicate, or of another shape or dtype than the architecture's.
        """
        self._tensors = _matched(directory, _stored(directory), architecture)

    def names(self) -> tuple[str, ...]:
        """Canonical names in the order of the model."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor as stored."""
        return self._tensors[name].dtype

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor or rows of it from its file."""
        return self._tensors[name].read(rows)


class AbsentWeights:
    """Names and shapes of an architecture whose weights are not at hand, for work on the graph alone."""

    def __init__(self, architecture: Architecture) -> None:
        self._shapes = architecture.checkpoint_tensors()

    def names(self) -> tuple[str, ...]:
        """Canonical names in the order of the model."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The dtype of graphs."""
        return np.dtype(np.float32)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Raises ValueError: there is nothing to read."""
        raise ValueError(f"{name} was asked for, but the checkpoint was opened without weights")


def iterate_rows(source: WeightSource, name: str, piece_bytes: int = _PIECE_BYTES) -> Iterator[np.ndarray]:
    """Reads a tensor from first row to last in pieces of about `piece_bytes`, at least one row each."""
    shape = source.shape(name)
    row_bytes = max(math.prod(shape[1:]) * source.dtype(name).itemsize, 1)
    step = max(piece_bytes // row_bytes, 1)
    for first in range(0, shape[0], step):
        yield source.read(name, slice(first, first + step))


def require_finite(values: np.ndarray, name: str) -> None:
    """Makes sure that float32 weights of a tensor are numbers.

    Raises:
        InputError: One is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise InputError(f"{name} has weights that are not finite: take a sound copy of the checkpoint")


def require_float16_range(values: np.ndarray, name: str, remedy: str, largest_code: int = 1) -> None:
    """Makes sure that float32 weights of a tensor stay finite in float16, or in blocks with a float16 scale.

    Args:
        values: the weights, or some of them.
        name: of the tensor.
        remedy: ends the message.
        largest_code: of a block, times its scale; 1 where the weights themselves are in float16.

    Raises:
        InputError: One does not, or is not finite to begin with.
    """
    largest = max(float(values.max()), -float(values.min()))
    if not np.isfinite(largest):
        require_finite(values, name)
    if largest > (most := largest_code * _LARGEST_FLOAT16):
        raise InputError(f"{name} holds {largest:g}, beyond the {most:g} that float16 can hold: {remedy}")


def weight_files(directory: Path) -> dict[str, set[str]]:
    """The safetensors files of a checkpoint directory, each with the names its index puts there.

    The set is empty for a single file without index.

    Raises:
        InputError: There are none, there are others that belong to none, the checkpoint is pickled, or the
            index is broken or points out of the directory.
    """
    found = {file.name for file in directory.glob("*.safetensors") if file.is_file()}
    if SINGLE_FILE in found:
        _refuse_strays(directory, found - {SINGLE_FILE}, SINGLE_FILE)
        return {SINGLE_FILE: set()}
    index = directory / INDEX_FILE
    if index.is_file():
        files = _indexed_files(index)
        _refuse_strays(directory, found - files.keys(), f"the shards that {INDEX_FILE} names")
        return files
    if found:
        raise InputError(f"{directory}: {listed(found)} without {INDEX_FILE}; download the index too")
    if pickled := sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern)):
        raise InputError(
            f"{directory}: {listed(pickled)} is pickled, and loading a pickle runs code of whoever wrote it; "
            "convert the checkpoint to safetensors"
        )
    raise InputError(f"{directory}: no weights; expected {SINGLE_FILE} or {INDEX_FILE} with its shards")


def canonical_name(name: str) -> str | None:
    """The name of `Llama4ForCausalLM` for a stored name; None for a tensor of the vision part.

    `Llama4ForConditionalGeneration` has written its language model as `language_model.model.*` and
    `language_model.lm_head.*`, and as `model.language_model.*` and `lm_head.*`.
    """
    if re.match(r"(model\.)?(vision_model|vision_adapter|multi_modal_projector)\.", name):
        return None
    if name.startswith("model.language_model."):
        rest = name.removeprefix("model.language_model.")
        return rest if rest.startswith(("model.", "lm_head.")) else "model." + rest
    return name.removeprefix("language_model.")


def _indexed_files(index: Path) -> dict[str, set[str]]:
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=partial(without_duplicates, index))
        weight_map: Any = content["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{index}: not a safetensors index with a weight_map; download it again") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{index}: its weight_map is not a table of tensor names to files; download it again"
        )
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise InputError(f"{index}: {name} is in {file!r}, which is no safetensors file")
        if "/" in file or "\\" in file or "\0" in file:
            raise InputError(
                f"{index}: {name} is in {file!r}, outside the directory; shards lie beside the index"
            )
        files.setdefault(file, set()).add(name)
    if absent := [file for file in files if not (index.parent / file).is_file()]:
        raise InputError(f"{index.parent}: shard missing: {listed(absent)}; download the checkpoint again")
    return files


def _refuse_strays(directory: Path, names: set[str], beside: str) -> None:
    """No file may look like weights and be left out in silence: it could be the newer half of a download."""
    if names:
        raise InputError(
            f"{directory}: {listed(names)} beside {beside}; move away what does not belong to the model"
        )


def _stored(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the directory under its stored name."""
    tensors: dict[str, StoredTensor] = {}
    duplicate, missing, extra = set(), set(), set()
    for file, expected in weight_files(directory).items():
        header = read_header(directory / file)
        duplicate |= tensors.keys() & header.keys()
        if expected:
            missing |= expected - header.keys()
            extra |= header.keys() - expected
        tensors |= header
    _refuse(directory, "index and shards differ", missing, extra - duplicate, duplicate)
    return tensors


def _matched(
    directory: Path, stored: Mapping[str, StoredTensor], architecture: Architecture
) -> dict[str, StoredTensor]:
    """The tensors of the architecture under their canonical names, in its order."""
    found: dict[str, StoredTensor] = {}
    duplicate = set()
    for stored_name, tensor in stored.items():
        name = canonical_name(stored_name)
        if name is None:
            continue
        if name in found:
            duplicate.add(name)
        found[name] = tensor
    for name, tensor in found.items():  # before the names, of which a quantized checkpoint has others
        _check_dtype(name, tensor)
    expected = architecture.checkpoint_tensors()
    head = found.pop(LM_HEAD, None) if architecture.tie_word_embeddings else None
    _refuse(
        directory,
        "tensors differ from config.json",
        expected.keys() - found.keys(),
        found.keys() - expected.keys(),
        duplicate,
    )
    for name, shape in expected.items():
        _check_shape(name, found[name], shape)
    if head is not None:
        _check_tied(head, found[EMBEDDING])
    return {name: found[name] for name in expected}


def _check_shape(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise InputError(f"{tensor.file}: {name} is {list(tensor.shape)}, config.json makes it {list(shape)}")


def _check_dtype(name: str, tensor: StoredTensor) -> None:
    if tensor.dtype_name not in WEIGHT_DTYPES:
        is_wide = tensor.dtype_name == "F64"
        remedy = "store it as one of them" if is_wide else "take the checkpoint before it was quantized"
        raise InputError(
            f"{tensor.file}: {name} is {tensor.dtype_name}; float32, float16 and bfloat16 are read, so {remedy}"
        )


def _check_tied(head: StoredTensor, embedding: StoredTensor) -> None:
    """A tied checkpoint may repeat the embedding as lm_head.weight; another matrix contradicts its config."""
    _check_shape(LM_HEAD, head, embedding.shape)
    step = max(_PIECE_BYTES // (embedding.shape[1] * 4), 1)
    pieces = (slice(first, first + step) for first in range(0, embedding.shape[0], step))
    if not all(np.array_equal(head.read(rows), embedding.read(rows)) for rows in pieces):
        raise InputError(
            f"{head.file}: lm_head.weight differs from the embedding although config.json ties them; "
            "set tie_word_embeddings to false there"
        )


def _refuse(directory: Path, what: str, missing: set[str], extra: set[str], duplicate: set[str]) -> None:
    faults = [
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in (("missing", missing), ("extra", extra), ("duplicate", duplicate))
        if names
    ]
    if faults:
        raise InputError(f"{directory}: {what}: {'; '.join(faults)}")
