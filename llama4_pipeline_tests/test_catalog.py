"""The package's catalog, files of users, and tables that are wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Llama4TextConfig

from llama4_pipeline.builders.checkpoint import build
from llama4_pipeline.catalog import CATALOG_FILE, USER_CATALOG_VARIABLE, find_model, load_catalog
from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint import write_synthetic_checkpoint
from llama4_pipeline_tests.checkpoints import write_random_checkpoint

BILLIONS = {
    "tiny": 0.003,
    "mini": 1.014,
    "7b": 6.436,
    "13b": 12.911,
    "70b": 68.977,
    "mobilellm-r1-140m": 0.140,
    "mobilellm-r1-360m": 0.359,
    "mobilellm-r1-950m": 0.950,
    "scout": 107.770,
    "maverick": 400.712,
}
TABLE = """
[models.mine]
description = "Mine"
source = "random"
max_context = 64
benchmark = { prompt_tokens = 16, new_tokens = 4 }
[models.mine.config]
num_hidden_layers = 2
"""


@pytest.fixture(autouse=True)
def no_user_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(USER_CATALOG_VARIABLE, raising=False)


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(TABLE)
    return file


def test_the_models_and_their_sizes() -> None:
    sizes = {}
    for name, model in load_catalog().items():
        assert model.architecture is not None
        assert model.architecture == Architecture.from_config(Llama4TextConfig(**model.config))
        sizes[name] = round(model.architecture.parameters() / 1e9, 3)
    assert sizes == BILLIONS
    # The size that is published for the smallest model with trained weights.
    assert find_model("mobilellm-r1-140m").architecture.parameters() == 140_248_512


def test_the_embedded_model_has_every_peculiarity() -> None:
    model = find_model("tiny")
    architecture = model.architecture
    layers = architecture.layers
    assert model.source == "trained"
    assert model.has_trained_weights
    assert model.nightly
    assert sum(not layer.is_moe for layer in layers) == 1
    assert max(layer.experts for layer in layers) >= 4
    assert any(layer.qk_norm for layer in layers)
    assert any(layer.temperature_tuning for layer in layers)
    assert architecture.floor_scale < 256
    assert any(layer.chunk_size and layer.chunk_size < 256 for layer in layers)
    assert architecture.num_key_value_heads < architecture.num_attention_heads
    assert architecture.max_position_embeddings >= model.max_context >= 2048


def test_random_weights_are_told_apart() -> None:
    random = {name for name, model in load_catalog().items() if not model.has_trained_weights}
    assert random == {"mini", "7b", "13b", "70b"}


def test_a_user_adds_a_model_and_replaces_a_source(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file.write_text(TABLE + '[models.scout]\nsource = "local:weights/scout"\n')
    monkeypatch.setenv(USER_CATALOG_VARIABLE, str(user_file))
    catalog = load_catalog()
    assert list(catalog) == [*BILLIONS, "mine"]
    assert catalog["mine"].benchmark.batch_sizes == (1, 2, 4, 8)
    assert catalog["scout"].source == f"local:{user_file.parent}/weights/scout"
    assert catalog["scout"].config["num_local_experts"] == 16
    assert load_catalog(user_file) == catalog


def test_a_user_replaces_single_keys_of_the_tables_in_a_table(user_file: Path) -> None:
    user_file.write_text(
        "[models.tiny]\nbenchmark = { repeats = 9 }\n[models.tiny.quantization]\nint4 = 'gptq'\n"
        "[models.mini.config]\nnum_hidden_layers = 8\n[models.mini.config.rope_parameters]\nrope_theta = 7.0\n"
    )
    before, after = load_catalog(), load_catalog(user_file)
    tiny, mini = before["tiny"], before["mini"]
    assert after["tiny"] == tiny.model_copy(
        update={
            "benchmark": tiny.benchmark.model_copy(update={"repeats": 9}),
            "quantization": tiny.quantization.model_copy(update={"int4": "gptq"}),
        }
    )
    rope = mini.config["rope_parameters"] | {"rope_theta": 7.0}
    assert after["mini"].config == mini.config | {"num_hidden_layers": 8, "rope_parameters": rope}


def test_a_hub_model_needs_no_config(user_file: Path) -> None:
    user_file.write_text('[models.x]\ndescription = "X"\nsource = "hub:some.one/x-1"\nmax_context = 512\n')
    model = load_catalog(user_file)["x"]
    assert model.architecture is None
    assert model.needs("checkpoint") is None
    assert model.has_trained_weights
    assert not model.is_run_for_quantization, "it may be large"


@pytest.mark.parametrize(("layers", "small"), [(2, True), (48, False)])
def test_the_size_of_a_local_model_is_that_of_its_own_config(
    user_file: Path, layers: int, small: bool
) -> None:
    config = load_catalog()["scout"].config | {
        "num_hidden_layers": layers,
        "vocab_size": 1000,
        "hidden_size": 1280,
    }
    write_synthetic_checkpoint(user_file.parent / "weights", config, seed=0, dtype="bfloat16")
    user_file.write_text('[models.x]\ndescription = "X"\nsource = "local:weights"\nmax_context = 512\n')
    model = load_catalog(user_file)["x"]
    assert model.architecture == Architecture.from_config(config)
    assert model.needs("exported_graph").disk_bytes == 4 * model.architecture.parameters()
    assert model.is_run_for_quantization is small


def test_what_lies_beside_the_weights_is_not_counted(user_file: Path) -> None:
    """A pruned cache of the hub leaves links that lead nowhere."""
    directory = write_random_checkpoint(user_file.parent / "weights")
    (directory / "gone.safetensors").symlink_to("/nowhere")
    user_file.write_text('[models.x]\ndescription = "X"\nsource = "local:weights"\nmax_context = 512\n')
    model = load_catalog(user_file)["x"]
    out = user_file.parent / "out"
    out.mkdir()
    assert model.needs("checkpoint", out).disk_bytes == 0, "weights are linked"
    build({}, {"source": model.source}, out)
    assert (out / "model.safetensors").samefile(directory / "model.safetensors")
    assert not (out / "gone.safetensors").is_symlink()


def test_a_local_checkpoint_says_itself_what_it_is(user_file: Path) -> None:
    """Of a table that replaces the source of a model of the package, the inherited keys do not count."""
    config = load_catalog()["tiny"].config | {"max_position_embeddings": 16384}
    write_synthetic_checkpoint(user_file.parent / "weights", config, seed=0, dtype="float16")
    table = '[models.tiny]\nsource = "local:weights"\nmax_context = '
    user_file.write_text(table + "16384")
    model = load_catalog(user_file)["tiny"]
    assert (model.dtype, model.stored_dtype) == ("float32", "float16")
    assert model.architecture.max_position_embeddings == 16384
    user_file.write_text(table + "16385")
    refused(user_file, r"expected max_context of at most max_position_embeddings \(16384\)")


def refused(file: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_catalog(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_context = 64",
            "max_context = '64'",
            r"\[models.mine\]: key max_context is '64', expected a valid int",
        ),
        ("max_context = 64", "max_context = 0", "key max_context is 0, expected greater than 0"),
        ("max_context = 64", "", "key max_context is missing"),
        ("max_context = 64", "max_contxt = 64", "key max_contxt is unknown; did you mean max_context?"),
        (
            "max_context = 64",
            "max_context = 64\nowner = 'x'",
            "key owner is unknown, expected one of benchmark, ",
        ),
        (
            "max_context = 64",
            "max_context = 64\nnightlyy = true",
            "key nightlyy is unknown; did you mean nightly?",
        ),
        (
            "max_context = 64",
            "max_context = 200000",
            "expected max_context of at most max_position_embeddings",
        ),
        (
            "max_context = 64",
            "max_context = 16",
            "benchmark.prompt_tokens . new_tokens of at most max_context",
        ),
        (
            "max_context = 64",
            "max_context = 64\nseed = -1",
            "key seed is -1, expected greater than or equal to 0",
        ),
        (
            "max_context = 64",
            "max_context = 64\ndtype = 'int8'",
            "key dtype is 'int8', expected 'float32', 'float16'",
        ),
        ("max_context = 64", "max_context = 64\nnightly = 1", "key nightly is 1, expected a valid boolean"),
        (
            "max_context = 64",
            "max_context = 64\nname = 'x'",
            "key name is unknown; the table's name is the model's",
        ),
        ("'Mine'", "7", "key description is 7, expected a valid string"),
        ("'random'", "'hub:x'", "key source is 'hub:x', expected .*hub:ORG/NAME"),
        ("'random'", "'hub:-x/y'", "key source is 'hub:-x/y', expected .*hub:ORG/NAME"),
        ("new_tokens = 4", "new_tokens = 4.5", "key benchmark.new_tokens is 4.5, expected a valid integer"),
        (
            "new_tokens = 4",
            "new_tokenz = 4",
            "key benchmark.new_tokenz is unknown; did you mean new_tokens?",
        ),
        ("new_tokens = 4", "batch_sizes = []", "key benchmark.batch_sizes is"),
        (
            "num_hidden_layers",
            "num_hiden_layers",
            "num_hiden_layers is none; did you mean num_hidden_layers?",
        ),
        (
            "num_hidden_layers = 2",
            "hidden_size = 'x'",
            "config key hidden_size is 'x', expected a positive integer",
        ),
        ("num_hidden_layers = 2", "initializer_range = nan", "key config: expected what JSON can hold"),
        ("num_hidden_layers = 2", "eos_token_id = 1979-05-27", "key config: expected what JSON can hold"),
        ("num_hidden_layers = 2", "num_hidden_layers = 10000000000", "expected at most 10000"),
        (
            "num_hidden_layers = 2",
            "num_hidden_layers = 2\nmoe_layers = [2]",
            "moe_layers from 0 to 1; 2 is no",
        ),
        ("num_hidden_layers = 2", "num_hidden_layers = 2\nmoe_layers = [-1]", "from 0 to 1; -1 is no layer"),
        ("'random'", '"local:a\\u0000b"', "null byte; write the directory out"),
        ("'Mine'", f"{'[' * 5000}", "not TOML"),
        ("num_hidden_layers = 2", "rope_parameters = 1", "expected rope_parameters to be a table"),
        ("[models.mine.config]\nnum_hidden_layers = 2", "", "expected a config, since source is 'random'"),
        ("[models.mine]", "[models.Mine]", "the model name 'Mine' is a directory's too"),
        ("[models.mine]", "[models.'../x']", "the model name '../x' is a directory's too"),
        ("[models.mine]", f"[models.{'x' * 101}]", "is a directory's too, expected up to 100 of a-z"),
        ("[models.mine]", "[models.history]", "no model can be named 'history': measurements are kept"),
        ("[models.mine]", "[models.'a...b']", "the model name 'a...b' is a directory's too"),
        ("[models.mine]", "[model.mine]", "model is not a table"),
        ("[models.mine]", "models = 3\n[mine]", "not TOML|is not a table"),
        ("[models.mine]", "[models]\na = 1\n[models.mine]", "models.a is 1, expected a table"),
        ("[models.mine]", "[models.mine", "not TOML"),
    ],
)
def test_a_wrong_table_names_its_key(user_file: Path, old: str, new: str, message: str) -> None:
    text = TABLE.replace('"', "'")
    assert old in text
    user_file.write_text(text.replace(old, new, 1))
    refused(user_file, message)


def test_a_byte_order_mark_is_no_part_of_a_catalog(user_file: Path) -> None:
    user_file.write_text(TABLE, encoding="utf-8-sig")
    assert "mine" in load_catalog(user_file)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.toml", "No such file")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    refused(tmp_path / "binary.toml", "not TOML")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_only_names_that_are_safe_as_directories_are_taken(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    file = tmp_path_factory.mktemp("catalog") / "mine.toml"
    quoted = "".join(f"\\U{ord(letter):08X}" for letter in name)
    file.write_text(TABLE.replace("models.mine", f'models."{quoted}"'))
    try:
        assert name in load_catalog(file)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert (file.parent / name).resolve().parent == file.parent
        assert name not in (".", "..", "")


@pytest.mark.parametrize(
    ("wrong", "hint"), [("scot", "scout"), ("mobilellm-r1-140", "mobilellm-r1-140m"), ("7B", "7b")]
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"no model '{wrong}' in the catalog; did you mean {hint}"):
        find_model(wrong)


def test_a_name_near_to_none_lists_the_catalog() -> None:
    with pytest.raises(InputError, match="the catalog has tiny, mini, 7b"):
        find_model("zzzzzz")


def test_the_catalog_imports_no_heavy_library() -> None:
    code = (
        "import sys; from llama4_pipeline.catalog import load_catalog; "
        "[model.needs('benchmarks') for model in load_catalog().values()]; "
        "print([name for name in ('torch', 'transformers', 'onnx', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_catalog_lies_in_the_package() -> None:
    assert CATALOG_FILE.is_file()


def test_data_and_methods_of_a_model(user_file: Path) -> None:
    table = TABLE.replace("[models.mine.config]", "").replace("num_hidden_layers = 2", "")
    table += 'data = { validation = "texts/held-out.jsonl", calibration = "datasets:wiki:train" }\n'
    table += 'quantization = { int4 = "qat" }\nconfig = { num_hidden_layers = 2 }\n'
    user_file.write_text(table)
    model = load_catalog(user_file)["mine"]
    assert model.data.validation == str(user_file.parent / "texts" / "held-out.jsonl")
    assert model.data.calibration == "datasets:wiki:train"
    assert (model.quantization.int8, model.quantization.int4) == (None, "qat")
    user_file.write_text(table.replace('int4 = "qat"', 'compare = ["int8 gptq", "int4 qdq-static"]'))
    with pytest.raises(InputError, match=r"quantization.compare .*not 'int4 qdq-static'"):
        load_catalog(user_file)
    user_file.write_text(table.replace("qat", "qdq-static"))
    with pytest.raises(InputError, match=r"quantization.int4 is 'qdq-static', expected one of rtn, k_quant"):
        load_catalog(user_file)
    user_file.write_text(table.replace("validation", "validate"))
    with pytest.raises(InputError, match=r"key data.validate is unknown; did you mean validation"):
        load_catalog(user_file)
