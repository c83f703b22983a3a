"""`gguf` and what `bench` makes of its file."""

import json

import pytest

from llama4_pipeline.cli import main
from llama4_pipeline.llama4.checkpoint import write_synthetic_checkpoint
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG

pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is in the extra llamacpp")


def test_a_file_is_written_measured_and_not_overwritten(tmp_path, capsys):
    config = PECULIAR_CONFIG | {"hidden_size": 64, "intermediate_size_mlp": 96, "moe_layers": None}
    checkpoint, out = tmp_path / "model", tmp_path / "model.gguf"
    write_synthetic_checkpoint(
        checkpoint, config | {"floor_scale": 8192, "attention_chunk_size": 8192}, seed=0, dtype="bfloat16"
    )
    words = ["gguf", "--checkpoint", str(checkpoint), "--out", str(out), "--encoding", "q4_0"]
    assert main(words) == 0
    bench = ["bench", "--engine", "llama.cpp", "--checkpoint", str(out), "--threads", "1", "--json"]
    assert main([*bench, "--prompt-tokens", "20", "--new-tokens", "4", "--batch", "1,2"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["engine"], record["model_bytes"]) == ("llama.cpp Q4_0", out.stat().st_size)
    assert record["roofline_share"] > 0
    assert set(record["throughput"]) == {"1", "2"}
    assert main(words) == 2
    assert "is there already: name a new file" in capsys.readouterr().err


def test_nothing_stays_of_a_file_that_cannot_be(tmp_path, capsys):
    """A width of no whole blocks, and a parent that is a file."""
    checkpoint = tmp_path / "model"
    config = PECULIAR_CONFIG | {"moe_layers": None, "floor_scale": 8192, "attention_chunk_size": 8192}
    write_synthetic_checkpoint(checkpoint, config, seed=0, dtype="bfloat16")
    for out, fault in (
        (tmp_path / "new" / "sub" / "model.gguf", "no multiple of the 32 weights"),
        (checkpoint / "config.json" / "model.gguf", "cannot be written"),
    ):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(["gguf", "--checkpoint", str(checkpoint), "--out", str(out)]) == 2
        printed = capsys.readouterr().err
        assert fault in printed and printed.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
