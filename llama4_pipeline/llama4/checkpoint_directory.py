"""Finds a checkpoint's directory, downloads it where it is a hub id, and reads its configuration."""

import json
import re
from pathlib import Path
from typing import Any

from llama4_pipeline.errors import InputError, one_line

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# architecture -> (its model_type, where the text configuration stands)
_ARCHITECTURES = {
    "Llama4ForCausalLM": ("llama4_text", None),
    "Llama4ForConditionalGeneration": ("llama4", "text_config"),
}
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def local_directory(path: str | Path, *, with_weights: bool = True) -> Path:
    """The directory of a checkpoint: the one given, or the download of a Hugging Face id ORG/NAME[@REVISION].

    A revision is a branch, a tag or a commit. Only configuration, tokenizer files and, if asked for, safetensors are
    downloaded.

    Raises:
        InputError: There is no such directory, and no such repository within reach.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory
    if directory.exists():
        raise InputError(f"{path} is a file; give the checkpoint's directory")
    if isinstance(path, str) and (hub_id := HUB_ID.fullmatch(path)):
        return _download(hub_id[1], hub_id[2], with_weights)
    raise InputError(
        f"{path}: no such directory; give a checkpoint's directory or a Hugging Face id ORG/NAME[@REVISION]"
    )


def _download(hub_id: str, revision: str | None, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    named = f"{hub_id}@{revision}" if revision else hub_id
    weights = ["*.safetensors"] if with_weights else []
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=["*.json", *weights, *TOKENIZER_FILES],
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # the HTTP client, and so the classes of its errors, differ by hub version
        raise InputError(
            f"{named}: no such directory, and the Hugging Face download failed ({one_line(error)}); "
            "give a local directory, or log in where the repository is gated"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object. Raises InputError where it does not, or cannot be read."""
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({one_line(error)})") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): see to its permissions") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: not a JSON object")
    return values


def read_text_config(directory: Path) -> dict[str, Any]:
    """Reads the keys of `Llama4TextConfig` from the config.json of either supported architecture.

    Raises:
        InputError: There is no config.json, it is broken, or it describes another architecture.
    """
    file = directory / CONFIG_FILE
    try:
        if not file.is_file():
            raise InputError(f"{directory}: no config.json; give the directory of a Hugging Face checkpoint")
    except PermissionError as error:
        raise InputError(f"{directory} cannot be read: see to its permissions") from error
    values = read_json(file)
    section = _text_section(file, values)
    text = values if section is None else values.get(section)
    if not isinstance(text, dict):
        raise InputError(
            f"{file}: {section} is not a JSON object; it must hold the text model's configuration"
        )
    ignored = ("architectures", "model_type", "transformers_version")
    text = {key: value for key, value in text.items() if key not in ignored}
    if isinstance(text.get("attn_temperature_tuning"), int):  # published configurations wrote 4 for true
        text["attn_temperature_tuning"] = bool(text["attn_temperature_tuning"])
    return text


def _text_section(file: Path, values: dict[str, Any]) -> str | None:
    """The key of config.json under which the text configuration stands; None where it is the whole."""
    model_type = values.get("model_type")
    named = values.get("architectures")
    if not named:  # a bare configuration, saved without a model
        named = [name for name, (kind, _) in _ARCHITECTURES.items() if kind == model_type]
    name = str(named[0]) if isinstance(named, list) and named else f"of model_type {model_type!r}"
    if name not in _ARCHITECTURES:
        supported = " and ".join(_ARCHITECTURES)
        raise InputError(f"{file}: architecture {name} is not supported; supported are {supported}")
    expected_type, section = _ARCHITECTURES[name]
    if model_type != expected_type:
        raise InputError(f"{file}: model_type is {model_type!r}, {name} has {expected_type!r}")
    return section
