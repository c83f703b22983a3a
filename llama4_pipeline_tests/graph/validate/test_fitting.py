"""The way of validation follows the memory there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.validate import fitting, validate_within_memory
from llama4_pipeline.llama4.checkpoint import Checkpoint


def test_a_small_model_is_validated_whole(checkpoint: Checkpoint, fused_graph: Path) -> None:
    report = validate_within_memory(checkpoint, fused_graph, lengths=(5,), batches=(1,), greedy_tokens=2)

    assert report.passed
    assert report.greedy


def test_a_batch_that_no_memory_holds_is_refused_before_a_model_is_loaded(
    checkpoint: Checkpoint, fused_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "validate_graph", lambda *_, **__: pytest.fail("it was tried"))
    with pytest.raises(InputError, match=r"1,000,000,000 rows of 3 tokens, of both models, need 3,144 GB"):
        validate_within_memory(checkpoint, fused_graph, lengths=(1, 3), batches=(1, 10**9))


def test_short_memory_takes_one_layer_at_a_time(tiny_random_checkpoint: Path, fused_graph: Path) -> None:
    """A limit leaves less than both models as a whole are said to need, and enough for what they really take."""
    limit = 1 << 30
    code = f"""
import resource
from pathlib import Path
from llama4_pipeline.graph.validate import validate_within_memory
from llama4_pipeline.llama4.checkpoint import Checkpoint
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
report = validate_within_memory(Checkpoint.open({str(tiny_random_checkpoint)!r}), Path({str(fused_graph)!r}))
print(report.passed, report.lengths, len(report.greedy))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "True (1, 33) 0"
