"""Opening and loading checkpoints, against what transformers loads; bad input, by its message."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig

from llama4_pipeline.errors import InputError
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
        assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id
        for (name, buffer), (other_name, other) in zip(
            model.named_buffers(), expected.named_buffers(), strict=True
        ):
            assert name == other_name
            assert torch.equal(buffer, other)
        assert torch.equal(logits(model), logits(expected))
        if overrides.get("tie_word_embeddings"):
            assert model.lm_head.weight is model.model.embed_tokens.weight
