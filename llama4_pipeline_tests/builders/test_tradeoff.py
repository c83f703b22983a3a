"""Methods beside each other: the float graph loses nothing, fewer bits lose more and weigh less."""

import json
from pathlib import Path

from llama4_pipeline.builders.files import METHODS_COMPARED
from llama4_pipeline.builders.tradeoff import build
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.graph.fuse import fuse_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.metrics.method_result import read_results

_TEXT = "a b c d e f g h i j k l m n o p q r s t u v w x y z "


def inputs_of(checkpoint: Path, root: Path) -> dict[str, Path]:
    export_graph(Checkpoint.open(checkpoint), root / "portable", max_context=512)
    fuse_graph(root / "portable", root / "fused")
    datasets = root / "datasets"
    datasets.mkdir()
    rows = {
        "validation": {"text": 4 * _TEXT},
        "summarise": {"task": "summarise", "prompt": "say it", "reference": "said"},
        "classify": {"task": "classify", "prompt": "which", "choices": ["one", "two"], "answer": "one"},
    }
    for name, row in rows.items():
        (datasets / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return {"checkpoint": checkpoint, "optimized_graph": root / "fused", "datasets": datasets}


def test_every_pair_is_quantized_and_judged(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    inputs, out = inputs_of(tiny_random_checkpoint, tmp_path), tmp_path / "out"
    out.mkdir()
    facts = build(inputs, {"compare": ["int8 rtn", "int4 rtn"]}, out)
    full, int8, int4 = read_results(out / METHODS_COMPARED)
    assert [(row.precision, row.method) for row in (full, int8, int4)] == [
        ("fp32", "float32"),
        ("int8", "rtn"),
        ("int4", "rtn"),
    ]
    assert abs(full.loss) < 1e-5
    assert full.quality.kl_divergence < 1e-9 < int8.quality.kl_divergence < int4.quality.kl_divergence
    assert full.weight_bytes > 2 * int8.weight_bytes
    architecture = Checkpoint.open(tiny_random_checkpoint).architecture
    table = architecture.vocab_size * architecture.hidden_size  # bytes: 8 bits in both
    assert 2 * (int8.weight_bytes - table) > 3 * (int4.weight_bytes - table)
    assert int4.quality.accuracy is not None and int4.quality.rougeL is not None
    told = facts["methods"]["int4 rtn"]
    assert (told["bytes"], told["perplexity_increase"]) == (int4.model_bytes, int4.loss)
    assert told["seconds"] > 0 and 0.01 < int4.decode_latency_ms < 1000
    assert [path.name for path in out.iterdir()] == [METHODS_COMPARED]


def test_nothing_to_compare_is_nothing_judged(tmp_path: Path) -> None:
    assert build({}, {"compare": []}, tmp_path) == {"methods": {}}
    assert read_results(tmp_path / METHODS_COMPARED) == []
    assert [path.name for path in tmp_path.iterdir()] == [METHODS_COMPARED]
