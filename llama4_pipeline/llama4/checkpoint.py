"""A checkpoint directory: configuration, weights, tokenizer; opened with every check made first."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.errors import InputError, one_line
from llama4_pipeline.llama4.architecture import EMBEDDING, LM_HEAD, Architecture
from llama4_pipeline.llama4.checkpoint_directory import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILES,
    local_directory,
    read_json,
    read_text_config,
)
from llama4_pipeline.llama4.safetensors_file import listed, write_file
from llama4_pipeline.llama4.synthetic import DTYPES, SyntheticSource
from llama4_pipeline.llama4.tokenizer import load_tokenizer
from llama4_pipeline.llama4.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    AbsentWeights,
    SafetensorsSource,
    WeightSource,
    iterate_rows,
)
from llama4_pipeline.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import Llama4ForCausalLM, Llama4TextConfig, PreTrainedTokenizerBase

SYNTHETIC_FILE = "synthetic_weights.json"
_UNCHUNKED = 2**31 - 1
_REFUSALS = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)  # of a value, by transformers


@dataclass(frozen=True)
class Checkpoint:
    """A Llama 4 text model on disk.

    Attributes:
        directory: Where its files lie.
        text_config: The keys of `Llama4TextConfig` as its config.json has them.
        architecture: What the configuration describes.
        weights: Its tensors, read on demand.
    """

    directory: Path
    text_config: Mapping[str, Any]
    architecture: Architecture
    weights: WeightSource

    @classmethod
    def open(cls, path: str | Path, *, with_weights: bool = True) -> "Checkpoint":
        """Opens a local directory, or downloads a Hugging Face repository (from its cache where it is there).

        A directory holds config.json, and model.safetensors or indexed shards, or synthetic_weights.json
        (`{"seed": 0, "dtype": "bfloat16"}`) for random weights made on demand.

        Args:
            path: A directory, or ORG/NAME[@REVISION].
            with_weights: False asks for config.json only; the weights have names and shapes, and cannot be read.

        Raises:
            InputError: No such directory or repository, another architecture, or weights that do not hold.
        """
        directory = local_directory(path, with_weights=with_weights)
        text_config = read_text_config(directory)
        try:
            architecture = Architecture.from_config(text_config)
        except InputError as error:
            raise InputError(f"{directory / CONFIG_FILE}: {error}") from error
        weights = _open_weights(directory, architecture) if with_weights else AbsentWeights(architecture)
        return cls(directory, text_config, architecture, weights)

    @cached_property
    def config(self) -> "Llama4TextConfig":
        """The configuration as transformers knows it; imports transformers.

        Raises:
            InputError: transformers refuses a value.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import Llama4TextConfig

        implied = {name: getattr(self.architecture, name) for name in ("head_dim", "num_key_value_heads")}
        reals = {name for name, default in vars(Llama4TextConfig()).items() if isinstance(default, float)}
        try:
            written = {  # JSON may write a real number as 1, which transformers refuses
                name: float(value) if name in reals and type(value) is int else value
                for name, value in self.text_config.items()
            }
            return Llama4TextConfig(**{**written, **implied})
        except (StrictDataclassError, *_REFUSALS) as error:
            raise InputError(f"{self.directory / CONFIG_FILE}: {one_line(error)}") from error

    @property
    def dtype(self) -> str:
        """The type that most of its weights are stored in: "float32", "float16" or "bfloat16"."""
        stored: Counter[str] = Counter()
        for name in self.weights.names():
            stored[self.weights.dtype(name).name] += math.prod(self.weights.shape(name))
        return stored.most_common(1)[0][0]

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(_bytes(self.weights, name) for name in self.weights.names())

    def load_model(self, dtype: str = "float32", device: str = "cpu") -> "Llama4ForCausalLM":
        """Builds the transformers model and fills it tensor by tensor.

        The same model as `Llama4ForCausalLM.from_pretrained` gives, also where the weights are synthetic or
        are a part of `Llama4ForConditionalGeneration`. Two exceptions: transformers cannot run
        attention_chunk_size null, so the model gets one chunk longer than any context, which is the same
        function; and no padding token, which training alone has a use for and a smaller vocabulary may lack.

        Args:
            dtype: "float32", "float16" or "bfloat16", whatever the checkpoint stores.
            device: A torch device.

        Returns:
            The model in evaluation mode with eager attention.

        Raises:
            InputError: transformers refuses a value, or makes no rotation of the configuration.
        """
        import torch
        from transformers import AutoModelForCausalLM

        self.rotary_frequencies()  # a bad rotation is told before weights are read
        config = type(self.config)(**self.config.to_dict())
        if config.attention_chunk_size is None:
            config.attention_chunk_size = _UNCHUNKED
        config.pad_token_id = None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), attn_implementation="eager"
            )
        model.load_state_dict(self._state(getattr(torch, dtype), device), assign=True)
        model.tie_weights()
        # Rotary frequencies are no weights and stayed on the meta device: made again where they are used.
        with torch.device(device):
            model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return model.eval()

    def rotary_frequencies(self) -> tuple["torch.Tensor", float]:
        """Frequencies float32 [head_dim / 2] and the factor on cosine and sine, by transformers' own code.

        Raises:
            InputError: `rope_parameters` give none, not as many, or some that are not finite.
        """
        from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

        try:
            rotary = Llama4TextRotaryEmbedding(self.config)
            frequencies, factor = rotary.inv_freq.float(), float(rotary.attention_scaling)
        except (RuntimeError, *_REFUSALS) as error:
            raise self._bad_rope(f"transformers makes no rotation of it ({one_line(error)})") from error
        pairs = -(-self.architecture.head_dim // 2)  # a head without rotation may be odd
        if len(frequencies) != pairs:
            raise self._bad_rope(f"it turns {len(frequencies)} of the {pairs} pairs of a head")
        if not (frequencies.isfinite().all() and math.isfinite(factor)):
            raise self._bad_rope("its frequencies are not finite")
        return frequencies, factor

    def _bad_rope(self, why: str) -> InputError:
        return InputError(f"{self.directory / CONFIG_FILE}: config key rope_parameters: {why}")

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Loads the tokenizer that lies beside the weights; code in the repository is never run.

        Raises:
            InputError: There is none, or it is broken.
        """
        return load_tokenizer(self.directory)

    def copy_sidecars(self, out: Path) -> None:
        """Writes what stands beside a graph: config.json, generation_config.json, tokenizer files.

        The configuration is the text model's also where the checkpoint is of the multimodal class.
        """
        out.mkdir(parents=True, exist_ok=True)
        _write_config(out, self.text_config)
        for file in (GENERATION_CONFIG_FILE, *TOKENIZER_FILES):
            if (self.directory / file).is_file():
                shutil.copyfile(self.directory / file, out / file)

    def _state(self, dtype: "torch.dtype", device: str) -> dict[str, "torch.Tensor"]:
        """The state dictionary, converted piece by piece: beside the model, one piece is in memory."""
        import torch

        state = {}
        with Progress("load weights", total=len(self.weights.names()), unit="tensors") as progress:
            for name in self.weights.names():
                tensor = torch.empty(self.weights.shape(name), dtype=dtype, device=device)
                first = 0
                for piece in iterate_rows(self.weights, name):
                    bits = torch.from_numpy(piece.view(f"i{piece.itemsize}"))
                    values = bits.view(getattr(torch, piece.dtype.name))
                    tensor[first : first + len(piece)] = values
                    first += len(piece)
                state[name] = tensor
                progress.advance()
        if self.architecture.tie_word_embeddings:
            state[LM_HEAD] = state[EMBEDDING]
        return state


def write_synthetic_checkpoint(out: Path, config: Mapping[str, Any], seed: int, dtype: str) -> None:
    """Writes a checkpoint directory whose weights are made on demand: config.json and synthetic_weights.json.

    Args:
        out: The directory; made when it is not there.
        config: Keys of `Llama4TextConfig`.
        seed: Seed of the weights.
        dtype: "float32", "float16" or "bfloat16".

    Raises:
        InputError: The configuration or the dtype is not valid.
    """
    Architecture.from_config(config)
    _check_synthetic({"seed": seed, "dtype": dtype}, out)
    out.mkdir(parents=True, exist_ok=True)
    _write_config(out, {**config, "dtype": dtype})
    (out / SYNTHETIC_FILE).write_text(json.dumps({"seed": seed, "dtype": dtype}) + "\n")


def write_shards(checkpoint: Checkpoint, out: Path, shard_bytes: int = 4 << 30) -> None:
    """Writes a checkpoint's weights as safetensors shards with an index, its other files beside them.

    Weights pass through in pieces; nothing is converted. A tensor larger than a shard gets one of its own.
    What fits one shard becomes model.safetensors.

    Args:
        checkpoint: Any opened checkpoint, synthetic ones included.
        out: The directory; made when it is not there.
        shard_bytes: No shard with more than one tensor is larger.
    """
    source = checkpoint.weights
    shards = list(_packed(source, shard_bytes))
    checkpoint.copy_sidecars(out)
    weight_map: dict[str, str] = {}
    with Progress("write shards", total=len(source.names()), unit="tensors") as progress:

        def pieces(name: str) -> Iterator[Any]:
            yield from iterate_rows(source, name)
            progress.advance()

        for number, names in enumerate(shards, start=1):
            file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_file(out / file, {name: (source.dtype(name), source.shape(name)) for name in names}, pieces)
            weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": checkpoint.weight_bytes}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _open_weights(directory: Path, architecture: Architecture) -> WeightSource:
    file = directory / SYNTHETIC_FILE
    if not file.is_file():
        return SafetensorsSource(directory, architecture)
    values = read_json(file)
    _check_synthetic(values, file)
    if real := {file.name for file in directory.glob("*.safetensors")}:
        raise InputError(
            f"{directory}: {SYNTHETIC_FILE} stands beside {listed(real)}: take away what is not meant"
        )
    return SyntheticSource(architecture, values["seed"], values["dtype"])


def _check_synthetic(values: Mapping[str, Any], where: Path) -> None:
    if type(values.get("seed")) is not int or values["seed"] < 0:
        raise InputError(f"{where}: seed is {values.get('seed')!r}, expected an integer from 0")
    if values.get("dtype") not in tuple(DTYPES):
        raise InputError(f"{where}: dtype is {values.get('dtype')!r}, expected one of {', '.join(DTYPES)}")


def _write_config(out: Path, text_config: Mapping[str, Any]) -> None:
    values = {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", **text_config}
    (out / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")


def _bytes(source: WeightSource, name: str) -> int:
    size = source.dtype(name).itemsize
    for length in source.shape(name):
        size *= length
    return size


def _packed(source: WeightSource, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name in source.names():
        size = _bytes(source, name)
        if names and filled + size > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names
