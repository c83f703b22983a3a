"""The checkpoint: trained here, made of random weights, or taken from a directory or the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama4_pipeline.artifacts.links import link_or_copy
from llama4_pipeline.builders.notes import note
from llama4_pipeline.llama4.checkpoint_directory import CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILES

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "synthetic_weights.json")
TAKEN = (CONFIG_FILE, GENERATION_CONFIG_FILE, *TOKENIZER_FILES, *_WEIGHTS)
"""Patterns of the files that decide what is taken from a directory."""


def build(inputs: Mapping[str, Path], parameters: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes a Hugging Face directory that opens as a Llama 4 checkpoint.

    Args:
        inputs: None.
        parameters: `source` ("trained", "random", "hub:ORG/NAME[@REVISION]" or "local:DIR") and, for the first two,
            `config`, `seed` and `dtype`.
        out: The directory to fill.

    Returns:
        Counts of the architecture, and how the training went.

    Raises:
        InputError: The source is not a Llama 4 checkpoint, or has no tokenizer.
    """
    from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint

    kind, _, place = parameters["source"].partition(":")
    facts: dict[str, Any] = {}
    if kind == "trained":
        from llama4_pipeline.llama4.reference import train_reference

        facts["training"] = train_reference(parameters["config"], out, parameters["seed"]).to_json()
        note(out, "training.json", (out / "training.json").read_bytes())
        (out / "training.json").unlink()
    elif kind == "random":
        write_synthetic_checkpoint(out, parameters["config"], parameters["seed"], parameters["dtype"])
    else:
        checkpoint = Checkpoint.open(place)
        checkpoint.load_tokenizer()  # which quality and calibration read: what is wrong is told of the source
        _take(checkpoint, out)
    return facts | _counts(Checkpoint.open(out))


def _take(checkpoint: Any, out: Path) -> None:
    """Links the weights and copies what stands beside them; code and pickles of the source stay behind."""
    checkpoint.copy_sidecars(out)
    for pattern in _WEIGHTS:
        for file in sorted(checkpoint.directory.glob(pattern)):
            if file.is_file():  # a link may lead nowhere; of what the model needs, opening has told
                link_or_copy(file, out / file.name)


def _counts(checkpoint: Any) -> dict[str, Any]:
    architecture = checkpoint.architecture
    return {
        "parameters": architecture.parameters(),
        "active_parameters": architecture.active_parameters(),
        "layers": len(architecture.layers),
        "experts": max(layer.experts for layer in architecture.layers),
    }
