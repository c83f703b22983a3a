"""The catalog of models: what each is, where its weights come from, how it is measured. Imports no heavy library."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llama4_pipeline.artifacts.links import copied_bytes
from llama4_pipeline.artifacts.location import HISTORY
from llama4_pipeline.data.samples import LIBRARY_PREFIX
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint_directory import HUB_ID, read_text_config
from llama4_pipeline.llama4.text_config import DEFAULTS, DTYPES
from llama4_pipeline.methods import DEFAULT_METHOD, METHODS, MIXED
from llama4_pipeline.needs import Conversion, Demand, Needs, needs

USER_CATALOG_VARIABLE = "LLAMA4_PIPELINE_CATALOG"
CATALOG_FILE = Path(__file__).with_suffix(".toml")
# Model names are partition keys and directory names; no longer than a recipe takes them.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_PARTITION_RANGE = "..."  # stands between two keys where Dagster reads a range of them
_SOURCE = re.compile(rf"trained|random|hub:{HUB_ID.pattern}|local:.+")
_SOURCE_FORMS = '"trained", "random", "hub:ORG/NAME[@REVISION]" or "local:DIR"'
# Keys of Llama4TextConfig that do not shape the tensors.
_OTHER_CONFIG_KEYS = {
    "rope_parameters",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attention_dropout",
    "router_aux_loss_coef",
    "router_jitter_noise",
}

_LARGEST_RUN_PARAMETERS = 4e9  # of a model that is run in float32 over many texts

PositiveInt = Annotated[StrictInt, Field(gt=0)]


class BenchmarkPlan(BaseModel):
    """How a model is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: PositiveInt = 128
    new_tokens: Annotated[StrictInt, Field(ge=2)] = 32
    batch_sizes: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    repeats: PositiveInt = 1


class DataPlan(BaseModel):
    """Where a model's data sets come from: a text, JSONL or Parquet file, or datasets:NAME:SPLIT; None is built in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: StrictStr | None = None
    validation: StrictStr | None = None
    summarise: StrictStr | None = None
    classify: StrictStr | None = None


class QuantizationPlan(BaseModel):
    """How the weights of a model are rounded.

    Attributes:
        int8: The method of the precision; None is the pipeline's choice for the model.
        int4: Likewise.
        compare: Pairs such as "int4 gptq" that are judged beside each other, for trained weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    int8: StrictStr | None = None
    int4: StrictStr | None = None
    compare: tuple[StrictStr, ...] = ()

    @field_validator("compare")
    @classmethod
    def _check_compared(cls, compared: tuple[str, ...]) -> tuple[str, ...]:
        known = [f"{precision} {name}" for name, terms in METHODS.items() for precision in terms.precisions]
        if unknown := set(compared) - set(known):
            raise ValueError(f"pairs of precision and method, {', '.join(known)}, not {unknown.pop()!r}")
        return compared

    @field_validator("int8", "int4")
    @classmethod
    def _check_method(cls, method: str | None, info: ValidationInfo) -> str | None:
        fitting = [name for name, terms in METHODS.items() if info.field_name in terms.precisions]
        if method is not None and method not in fitting:
            raise ValueError(f"one of {', '.join(fitting)}")
        return method


class ModelSpec(BaseModel):
    """One table [models.NAME] of a catalog file.

    Attributes:
        name: The table's name.
        description: What it is, in one line.
        source: "trained", "random", "hub:ORG/NAME[@REVISION]" or "local:DIR".
        config: Keyword arguments of `transformers.Llama4TextConfig`. For hub and local models the checkpoint's
            config.json rules, and this may be empty.
        dtype: What random weights are stored in; of a hub model that is not here yet, what it is reckoned with.
        seed: Of training, or of random weights.
        nightly: Whether the nightly schedule measures it.
        max_context: Tokens that the fused graph and the measurements support.
        benchmark: How it is measured.
        data: What it is calibrated and judged on.
        quantization: How its weights are rounded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr
    description: StrictStr
    source: StrictStr
    config: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    nightly: StrictBool = False
    max_context: PositiveInt
    benchmark: BenchmarkPlan = BenchmarkPlan()
    data: DataPlan = DataPlan()
    quantization: QuantizationPlan = QuantizationPlan()

    @property
    def has_trained_weights(self) -> bool:
        """False where perplexity, ROUGE and accuracy would mean nothing: 'random weights' stands there."""
        return self.source != "random"

    @property
    def is_run_for_quantization(self) -> bool:
        """Whether the float model is asked what calibration text reaches and which weights are sensitive.

        Not where it is large, and what is not known to be small may be large.
        """
        known = self.architecture
        return (
            self.has_trained_weights and known is not None and known.parameters() <= _LARGEST_RUN_PARAMETERS
        )

    def method_of(self, precision: Literal["int8", "int4"]) -> str:
        """The method by which its graph of a precision is made."""
        chosen = self.quantization.int8 if precision == "int8" else self.quantization.int4
        if chosen:
            return chosen
        if not self.has_trained_weights:
            return "rtn"  # of random weights, speed and size are all that shows
        return MIXED if precision == "int4" and self.is_run_for_quantization else DEFAULT_METHOD[precision]

    @cached_property
    def architecture(self) -> Architecture | None:
        """What the config.json of a local source describes, else `config`; None where only the checkpoint knows."""
        with suppress(InputError):  # the checkpoint stage tells what is wrong with the directory
            if config := self._local_config:
                return Architecture.from_config(config)
        return self._configured

    @cached_property
    def stored_dtype(self) -> str:
        """What the weights are stored in, as far as that is known before they are opened; training writes float32."""
        config = self._local_config or {}
        named = "float32" if self.source == "trained" else config.get("dtype") or config.get("torch_dtype")
        return named if named in DTYPES else self.dtype

    @property
    def _local_config(self) -> dict[str, Any] | None:
        kind, _, place = self.source.partition(":")
        if kind == "local":
            with suppress(InputError):
                return read_text_config(Path(place))
        return None

    @property
    def _configured(self) -> Architecture | None:
        return Architecture.from_config(self.config) if self.config else None

    def needs(self, stage: str, out: Path | None = None, device: str = "cpu") -> Needs | None:
        """Memory and disk that a stage needs for this model; None where only the checkpoint knows.

        Args:
            stage: Its name.
            out: The directory it writes to, if that is known: from another file system a local checkpoint is copied.
            device: "cpu" or "cuda", that quantized graphs are made for.
        """
        if self.architecture is None:
            return None
        tokens = self.benchmark.prompt_tokens + self.benchmark.new_tokens
        demand = Demand(
            architecture=self.architecture,
            source=self.source.partition(":")[0],
            dtype=self.stored_dtype,
            cached_tokens=tokens * max(self.benchmark.batch_sizes),
            conversions=self._conversions(stage, device),
            run=stage in self._run_stages(),
        )
        needed = needs(demand, stage)
        if stage == "checkpoint" and out is not None and demand.source == "local":
            files = Path(self.source.partition(":")[2]).glob("*.safetensors")
            weights = (file for file in files if file.is_file())
            return replace(needed, disk_bytes=copied_bytes(weights, out))
        return needed

    def _conversions(self, stage: str, device: str) -> tuple[Conversion, ...]:
        """What is quantized in a stage."""
        made: dict[str, list[tuple[str, str]]] = {
            "int8_graph": [("int8", self.method_of("int8"))],
            "int4_graph": [("int4", self.method_of("int4"))],
        }
        if self.has_trained_weights:
            pairs = (pair.split() for pair in self.quantization.compare)
            device = "cpu" if stage == "quantization_tradeoff" else device
            made["quantization_tradeoff"] = [(precision, method) for precision, method in pairs]
        return tuple(
            Conversion(precision, method, calibrated=METHODS[method].needs_text, device=device)
            for precision, method in made.get(stage, ())
        )

    def _run_stages(self) -> Iterator[str]:
        """Those that run the whole model in float32 over many texts."""
        if self.is_run_for_quantization:
            yield "datasets"
        if self.has_trained_weights and self.quantization.compare:
            yield "quantization_tradeoff"

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        if not _SOURCE.fullmatch(source):
            raise ValueError(_SOURCE_FORMS)
        return source

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        known = DEFAULTS.keys() | _OTHER_CONFIG_KEYS
        for key in config.keys() - known:
            raise ValueError(f"keys of Llama4TextConfig; {key} is none{_nearest(key, known)}")
        if not isinstance(config.get("rope_parameters", {}), dict):
            raise ValueError("rope_parameters to be a table")
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"what JSON can hold, as a config.json: {error}") from error
        return config

    @model_validator(mode="after")
    def _check_together(self) -> "ModelSpec":
        if not self.config and self.source in ("trained", "random"):
            raise ValueError(f"a config, since source is {self.source!r}")
        try:
            architecture = self.architecture
        except InputError as error:
            raise ValueError(f"a valid config; {error}") from error
        sparse, layers = self.config.get("moe_layers") or (), architecture.layers if architecture else ()
        if outside := [layer for layer in sparse if not 0 <= layer < len(layers)]:
            raise ValueError(f"moe_layers from 0 to {len(layers) - 1}; {outside[0]} is no layer")
        if architecture and self.max_context > architecture.max_position_embeddings:
            raise ValueError(
                f"max_context of at most max_position_embeddings ({architecture.max_position_embeddings})"
            )
        if self.benchmark.prompt_tokens + self.benchmark.new_tokens > self.max_context:
            raise ValueError(
                f"benchmark.prompt_tokens + new_tokens of at most max_context ({self.max_context})"
            )
        return self


_PLANS: dict[str, type[BaseModel]] = {
    "benchmark": BenchmarkPlan,
    "data": DataPlan,
    "quantization": QuantizationPlan,
}


def load_catalog(user_file: Path | None = None) -> dict[str, ModelSpec]:
    """Reads the package's catalog and the user's, whose tables add models and replace keys of the package's.

    Args:
        user_file: The user's catalog; by default the file that $LLAMA4_PIPELINE_CATALOG names, if any.

    Returns:
        Models by name, the package's first.

    Raises:
        InputError: A file or a table is wrong; the message names file, table and key and what was expected.
    """
    tables = {name: (table, CATALOG_FILE) for name, table in _read_tables(CATALOG_FILE).items()}
    named = os.environ.get(USER_CATALOG_VARIABLE)
    user_file = user_file or (Path(named) if named else None)
    if user_file is not None:
        for name, table in _read_tables(user_file).items():
            inherited, _ = tables.get(name, ({}, user_file))
            tables[name] = (_merged(inherited, table), user_file)
    return {name: _model(name, table, file) for name, (table, file) in tables.items()}


def find_model(name: str, catalog: Mapping[str, ModelSpec] | None = None) -> ModelSpec:
    """The model of a name.

    Args:
        name: As `llama4-pipeline models` lists it.
        catalog: Where to look; `load_catalog()` by default.

    Raises:
        InputError: There is none; the message suggests the nearest.
    """
    models = load_catalog() if catalog is None else catalog
    if name not in models:
        hint = _nearest(name, models) or f"; the catalog has {', '.join(models)}"
        raise InputError(f"no model {name!r} in the catalog{hint}")
    return models[name]


def _merged(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A table with single keys replaced, in the tables within it too."""
    merged = {**inherited, **own}
    for key in inherited.keys() & own.keys():
        before, after = inherited[key], own[key]
        if isinstance(before, dict) and isinstance(after, dict):
            merged[key] = _merged(before, after)
    return merged


def _read_tables(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror}; ${USER_CATALOG_VARIABLE} names the user's catalog"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not TOML: {error}") from error
    models = content.pop("models", {})
    if content or not isinstance(models, dict):
        found = next(iter(content), "models")
        raise InputError(f"{file}: {found} is not a table [models.NAME], and a catalog holds nothing else")
    for name, table in models.items():
        if not isinstance(table, dict):
            raise InputError(f"{file}: models.{name} is {table!r}, expected a table [models.{name}]")
        if not _NAME.fullmatch(name) or _PARTITION_RANGE in name:
            raise InputError(
                f"{file}: the model name {name!r} is a directory's too, expected up to 100 of a-z, 0-9, '.', "
                f"'_' and '-', a letter or digit first, without {_PARTITION_RANGE!r}"
            )
        if name == HISTORY:
            raise InputError(f"{file}: no model can be named {name!r}: measurements are kept under that name")
        _resolve_paths(table, file)
    return models


def _resolve_paths(table: dict[str, Any], file: Path) -> None:
    """Makes the directory of a "local:DIR" source, and data files, absolute: they are relative to the catalog file."""
    kind, _, directory = str(table.get("source")).partition(":")
    if kind == "local" and directory:
        table["source"] = f"local:{_absolute(directory, file)}"
    data = table.get("data")
    if not isinstance(data, dict):
        return
    for name, source in list(data.items()):
        if isinstance(source, str) and not source.startswith(LIBRARY_PREFIX):
            data[name] = str(_absolute(source, file))


def _absolute(path: str, file: Path) -> Path:
    try:
        return (file.parent / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file}: {path!r}: {error}; write the directory out") from error


def _model(name: str, table: dict[str, Any], file: Path) -> ModelSpec:
    if "name" in table:
        raise InputError(f"{file}: [models.{name}]: key name is unknown; the table's name is the model's")
    try:
        return ModelSpec(name=name, **table)
    except ValidationError as error:
        raise InputError(f"{file}: [models.{name}]: {_complaint(error)}") from error


def _complaint(error: ValidationError) -> str:
    """One thing wrong, as: key, what it is, what was expected. An unknown key goes first: it explains a missing one."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "extra_forbidden":
        fields = _PLANS.get(key.partition(".")[0], ModelSpec).model_fields
        known = sorted(fields.keys() - {"name"})
        hint = _nearest(str(first["loc"][-1]), known) or f", expected one of {', '.join(known)}"
        return f"key {key} is unknown{hint}"
    if not key or key == "config":
        return f"{key and 'key config: '}expected {expected}"
    return f"key {key} is {first['input']!r}, expected {expected}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the known names, or nothing where none is near."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
