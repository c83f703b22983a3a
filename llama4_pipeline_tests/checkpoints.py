"""Small checkpoints with random weights, for tests that need a real model on disk."""

from pathlib import Path
from typing import Any

PECULIAR_CONFIG: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 32,
    "intermediate_size_mlp": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "moe_layers": [0, 2, 3],
    "no_rope_layer_interval": 4,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 8,
    "attn_scale": 0.1,
    "attention_chunk_size": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "on",
    "be",
    "at",
    "by",
    "this",
    "not",
    "or",
    "from",
    "but",
    "all",
    "can",
    "has",
    "more",
    "one",
]


def write_random_checkpoint(
    out: Path, *, seed: int = 0, dtype: str = "float32", max_shard_size: str = "1GB", **config_overrides: Any
) -> Path:
    """Writes a `Llama4ForCausalLM` with every peculiarity at small scale, and a word tokenizer.

    Four layers: MoE (4 experts and a shared one), dense, MoE, MoE; the last is a NoPE layer with
    temperature tuning that steps every 8 tokens; the others attend in chunks of 16. Four heads of 16 over
    two KV heads, hidden 48.

    Args:
        out: The directory to write.
        seed: Seed of the weights.
        dtype: What the weights are stored as.
        max_shard_size: As in `save_pretrained`; a small one makes shards.
        config_overrides: Keys of `Llama4TextConfig` that differ.

    Returns:
        `out`.
    """
    import torch
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config = Llama4TextConfig(**(PECULIAR_CONFIG | config_overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llama4ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):  # not all ones, not all zeros
                parameter.data += 0.2 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=max_shard_size)
    write_word_tokenizer(out, config.vocab_size)
    return out


def write_word_tokenizer(out: Path, vocab_size: int) -> None:
    """Writes a word-level tokenizer whose ids all lie below `vocab_size` (at least 4)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *_WORDS]
    words += [f"w{number}" for number in range(len(words), vocab_size)]
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(words[:vocab_size])}, "<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(out)


def spoil(directory: Path, tensor: str) -> None:
    """Makes the last element of a tensor NaN."""
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    weights[tensor].view(-1)[-1] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
