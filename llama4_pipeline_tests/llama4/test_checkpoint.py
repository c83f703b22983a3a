"""Opening and loading checkpoints, against what transformers loads; bad input, by its message."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig

from llama4_pipeline.errors import InputError
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_shards, write_synthetic_checkpoint
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG, write_random_checkpoint

TOKENS = torch.arange(40).remainder(11).add(3).reshape(2, 20)


def logits(model: Llama4ForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    ("dtype", "shard_size", "overrides"),
    [
        ("float32", "1GB", {}),
        ("float32", "20KB", {}),
        ("float16", "1GB", {}),
        ("bfloat16", "30KB", {}),
        ("float32", "1GB", {"tie_word_embeddings": True, "moe_layers": []}),
        ("float32", "1GB", {"attention_bias": True, "num_experts_per_tok": 2}),
        (
            "float32",
            "1GB",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 16.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
    ],
)
def test_load_model_equals_from_pretrained(
    tmp_path: Path, dtype: str, shard_size: str, overrides: dict[str, Any]
) -> None:
    write_random_checkpoint(tmp_path, dtype=dtype, max_shard_size=shard_size, **overrides)
    for load_dtype in ("float32", dtype):
        expected = Llama4ForCausalLM.from_pretrained(
            tmp_path, dtype=getattr(torch, load_dtype), attn_implementation="eager"
        )
        model = Checkpoint.open(tmp_path).load_model(load_dtype)
        assert model.state_dict().keys() == expected.state_dict().keys()
        assert model.dtype == expected.dtype
        assert not model.training
        assert model.config._attn_implementation == "eager"
        for (name, buffer), (other_name, other) in zip(
            model.named_buffers(), expected.named_buffers(), strict=True
        ):
            assert name == other_name
            assert torch.equal(buffer, other)
        assert torch.equal(logits(model), logits(expected))
        if overrides.get("tie_word_embeddings"):
            assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("newer_names", [False, True])
def test_the_text_part_of_the_multimodal_class(tmp_path: Path, newer_names: bool) -> None:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 28,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    config = Llama4Config(text_config=Llama4TextConfig(**PECULIAR_CONFIG).to_dict(), vision_config=vision)
    whole = Llama4ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    if newer_names:
        renamed = {
            name.replace("language_model.model.", "model.language_model.").replace(
                "language_model.lm", "lm"
            ): tensor
            for name, tensor in load_file(tmp_path / "model.safetensors").items()
        }
        assert "model.language_model.norm.weight" in renamed
        save_file(renamed, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    model = checkpoint.load_model()
    with torch.no_grad():
        expected = whole.language_model(
            TOKENS
        ).logits  # of text alone the whole makes an error in transformers 5.24
    torch.testing.assert_close(logits(model), expected)

    checkpoint.copy_sidecars(tmp_path / "graph")
    config = Llama4TextConfig.from_pretrained(tmp_path / "graph")
    assert config.to_dict()["num_local_experts"] == 4
    assert Architecture.from_config(config) == checkpoint.architecture
    assert json.loads((tmp_path / "graph" / "config.json").read_text())["architectures"] == [
        "Llama4ForCausalLM"
    ]


def test_a_null_chunk_size_attends_to_everything(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, attention_chunk_size=None)
    checkpoint = Checkpoint.open(tmp_path)
    model = checkpoint.load_model()
    assert checkpoint.config.attention_chunk_size is None
    full = write_random_checkpoint(tmp_path / "full", layer_types=["full_attention"] * 4)
    assert torch.equal(logits(model), logits(Checkpoint.open(full).load_model()))


def test_a_padding_token_outside_a_vocabulary_that_was_cut_down_is_left_alone(directory: Path) -> None:
    expected = logits(Checkpoint.open(directory).load_model())
    edit_config(directory, pad_token_id=200018)
    assert torch.equal(logits(Checkpoint.open(directory).load_model()), expected)


def test_a_real_number_may_be_written_as_a_whole_one(directory: Path) -> None:
    edit_config(directory, attn_scale=1.0)
    expected = logits(Checkpoint.open(directory).load_model())
    edit_config(directory, attn_scale=1, router_jitter_noise=0)
    assert torch.equal(logits(Checkpoint.open(directory).load_model()), expected)


def test_a_broken_generation_config_is_of_no_interest_to_the_model(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    Checkpoint.open(directory).load_model()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_synthetic_checkpoint_and_its_shards_are_the_same_model(tmp_path: Path, dtype: str) -> None:
    write_synthetic_checkpoint(tmp_path / "synthetic", PECULIAR_CONFIG, seed=5, dtype=dtype)
    synthetic = Checkpoint.open(tmp_path / "synthetic")
    write_shards(synthetic, tmp_path / "shards", shard_bytes=100_000)
    write_shards(synthetic, tmp_path / "one")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert (tmp_path / "one" / "model.safetensors").is_file()
    expected = logits(synthetic.load_model())
    assert expected.std() > 0.1
    for directory in ("shards", "one"):
        assert torch.equal(logits(Checkpoint.open(tmp_path / directory).load_model()), expected)
        theirs = Llama4ForCausalLM.from_pretrained(
            tmp_path / directory, dtype=torch.float32, attn_implementation="eager"
        )
        assert torch.equal(logits(theirs), expected)


def test_sidecars_of_a_text_checkpoint(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_random_checkpoint))
    checkpoint.copy_sidecars(tmp_path)
    expected = Llama4TextConfig.from_pretrained(tiny_random_checkpoint)
    assert Llama4TextConfig.from_pretrained(tmp_path).to_dict() == expected.to_dict()
    copied = {file.name for file in tmp_path.iterdir()}
    assert copied == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert checkpoint.load_tokenizer()("the of and")["input_ids"] == [4, 5, 6]


def test_opening_imports_no_torch(tiny_random_checkpoint: Path) -> None:
    code = (
        "import sys; from llama4_pipeline.llama4.checkpoint import Checkpoint; "
        f"Checkpoint.open({str(tiny_random_checkpoint)!r}); "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def refused(path: Path | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def directory(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))


def edit_config(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def test_paths_that_hold_no_checkpoint_are_refused(directory: Path) -> None:
    refused(directory / "absent", "no such directory; give a checkpoint's directory or a Hugging Face id")
    refused(directory / "config.json", "is a file; give the checkpoint's directory")
    (directory / "config.json").unlink()
    refused(directory, "no config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_refused(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    refused(directory, "config.json: not")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "architecture LlamaForCausalLM"),
        ({"architectures": None, "model_type": "llama"}, "architecture of model_type 'llama'"),
        ({"architectures": "Llama4ForCausalLM", "model_type": ["x"]}, "architecture of model_type"),
    ],
)
def test_another_architecture_is_named(directory: Path, values: dict[str, Any], named: str) -> None:
    edit_config(directory, **values)
    refused(directory, f"{named}.* is not supported; supported are Llama4ForCausalLM and Llama4ForCond")


def test_a_config_that_contradicts_itself_is_refused(directory: Path) -> None:
    edit_config(directory, architectures=["Llama4ForConditionalGeneration"])
    refused(directory, "model_type is 'llama4_text', Llama4ForConditionalGeneration has 'llama4'")
    edit_config(directory, model_type="llama4")
    refused(directory, "text_config is not a JSON object")


def test_a_wrong_value_names_file_and_key(directory: Path) -> None:
    edit_config(directory, hidden_size="wide")
    refused(directory, "config.json: config key hidden_size is 'wide', expected a positive integer")


def test_a_value_that_only_transformers_reads_is_refused(directory: Path) -> None:
    edit_config(directory, initializer_range="wide")
    with pytest.raises(InputError, match=r"config.json: .*initializer_range"):
        _ = Checkpoint.open(directory).config
    edit_config(directory, initializer_range=10**400)
    with pytest.raises(InputError, match=r"config.json: "):
        _ = Checkpoint.open(directory).config
    edit_config(directory, initializer_range=0.02, id2label=3)
    with pytest.raises(InputError, match=r"config.json: "):
        _ = Checkpoint.open(directory).config


def test_what_null_stands_for_is_told_to_transformers(directory: Path) -> None:
    architecture = Checkpoint.open(directory).architecture
    implied = architecture.hidden_size // architecture.num_attention_heads
    edit_config(directory, head_dim=None, num_key_value_heads=None)
    config = Checkpoint.open(directory, with_weights=False).config
    assert (config.head_dim, config.num_key_value_heads) == (implied, architecture.num_attention_heads)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": None},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 1.0,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 3,
            "long_factor": [1.0] * 3,
        },
    ],
)
def test_a_rotation_that_transformers_cannot_make_is_refused(
    directory: Path, parameters: dict[str, Any]
) -> None:
    edit_config(directory, rope_parameters=parameters)
    with pytest.raises(InputError, match=r"config\.json: "):
        Checkpoint.open(directory).load_model()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1, "dtype": "float32"}, "seed is -1"),
        ({"seed": 1, "dtype": "int8"}, "dtype is 'int8'"),
        ({}, "seed"),
    ],
)
def test_a_wrong_synthetic_description_is_refused(
    directory: Path, values: dict[str, Any], message: str
) -> None:
    (directory / "synthetic_weights.json").write_text(json.dumps(values))
    refused(directory, message)


def test_made_up_weights_beside_real_ones_are_refused(directory: Path) -> None:
    (directory / "synthetic_weights.json").write_text('{"seed": 0, "dtype": "float32"}')
    refused(directory, "synthetic_weights.json stands beside model.safetensors")


def test_a_missing_or_broken_tokenizer_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="the tokenizer does not load"):
        Checkpoint.open(directory).load_tokenizer()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Checkpoint.open(directory).load_tokenizer()


def test_a_hub_id_out_of_reach_is_refused(tmp_path: Path) -> None:
    code = (
        "from llama4_pipeline.errors import InputError\n"
        "from llama4_pipeline.llama4.checkpoint import Checkpoint\n"
        "try: Checkpoint.open('nobody/no-such-model')\n"
        "except InputError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.startswith("nobody/no-such-model: no such directory, and the Hugging Face download")
    assert result.stdout.count("\n") == 1


def test_a_hub_id_in_the_cache_is_opened(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny"
    commit = "0" * 40
    shutil.copytree(tiny_random_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from llama4_pipeline.llama4.checkpoint import Checkpoint; "
        "print(Checkpoint.open('someone/tiny').architecture.hidden_size)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "48\n"


def test_without_weights_the_configuration_is_enough(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny_random_checkpoint / "config.json", tmp_path / "config.json")
    checkpoint = Checkpoint.open(tmp_path, with_weights=False)
    assert checkpoint.weights.shape("model.embed_tokens.weight") == (131, 48)
    with pytest.raises(ValueError, match="opened without weights"):
        checkpoint.weights.read("model.embed_tokens.weight")
