"""The embedded model's training: deterministic, complete on disk, and (slowly) good enough to mean something."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Llama4ForCausalLM

from llama4_pipeline.catalog import load_catalog
from llama4_pipeline.llama4.reference import TrainingPlan, train_reference

_MICRO = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "moe_layers": [0, 2],
    "no_rope_layer_interval": 3,
    "attention_chunk_size": 16,
    "floor_scale": 8,
    "max_position_embeddings": 256,
}
_FIVE_STEPS = TrainingPlan(
    steps=5, text_tokens=128, row_tokens=64, task_tokens=512, quality_examples=4, quality_tokens=512
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train_reference(_MICRO, out, seed=3, plan=_FIVE_STEPS)
    return out


def test_the_directory_is_a_checkpoint_of_transformers(trained: Path):
    loaded: Any = Llama4ForCausalLM.from_pretrained(trained, output_loading_info=True)
    model, loading = loaded
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(trained)
    text = "Return the name \N{GREEK SMALL LETTER PI} of the file.\n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id == model.generation_config.bos_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 0
    assert model.dtype == torch.float32
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "training.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= names


def test_training_json_states_the_facts(trained: Path):
    facts = json.loads((trained / "training.json").read_text())
    assert facts["steps"] == 5 and facts["text_tokens"] == 5 * 128 and facts["seed"] == 3
    assert facts["quality"]["unigram_perplexity"] > 1 and facts["quality"]["chance_accuracy"] == 0.25
    assert [len(load) for load in facts["quality"]["expert_load"].values()] == [4, 4]


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_process_as_it_was(trained: Path, tmp_path: Path):
    torch.manual_seed(99)
    threads, random_state = torch.get_num_threads(), torch.random.get_rng_state()
    train_reference(_MICRO, tmp_path, seed=3, plan=_FIVE_STEPS)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in trained.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (trained / path.name).read_bytes(), path.name
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_embedded_model_has_learned(tmp_path: Path):
    spec = load_catalog()["tiny"]
    quality = train_reference(spec.config, tmp_path, spec.seed).quality
    assert quality.perplexity[512] < 0.4 * quality.unigram_perplexity
    assert quality.perplexity[2048] < 1.1 * quality.perplexity[512]
    assert quality.accuracy > 1.6 * quality.chance_accuracy
    assert quality.rouge_l > 1.4 * quality.chance_rouge_l
    for load in quality.expert_load.values():
        assert min(load) > 0.2 / len(load)
