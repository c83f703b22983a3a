"""Ratios, worked out from a record made by hand, and what is said of them."""

from pathlib import Path

import pytest

from llama4_pipeline.machine import describe_machine
from llama4_pipeline.metrics.sweep import Sweep
from llama4_pipeline_tests.benchmark.page import BEGIN, END, write_page, write_readme_table
from llama4_pipeline_tests.benchmark.record import (
    ModelRecord,
    Quality,
    Record,
    Row,
    Run,
    read_record,
    write_record,
)
from llama4_pipeline_tests.benchmark.targets import targets


def row(key: str, decode_ms: list[float], kl: float) -> Row:
    runs = [
        Run(
            title=key,
            load_seconds=1.0,
            sweep=Sweep(
                prefill_ms={128: 400.0, 512: 1600.0, 2048: 9000.0},
                decode_ms={16: ms, 2048: 1.2 * ms},
                throughput={1: 1000 / ms, 2: 1500 / ms, 4: 2000 / ms, 8: 2500 / ms},
                kv_cache_bytes=100,
                peak_memory_bytes=1200,
            ),
            providers={"CPU": 3},
            model_bytes=900,
            active_weight_bytes=10**8,
            cache_read_bytes={16: 0, 2048: 10**7},
        )
        for ms in decode_ms
    ]
    quality = Quality(tokens=255, kl_divergence=kl, kl_stderr=kl / 10, top1_agreement=0.9)
    return Row(key=key, title=key, runs=runs, quality=quality)


@pytest.fixture
def record() -> Record:
    rows = [
        row("onnxruntime int4", [10.0, 8.0, 9.0], kl=0.01),
        row("llama.cpp q4_0", [9.9], kl=0.02),
        row("pytorch float32", [90.0], kl=0.0),  # held against the first round
        Row(key="pytorch bfloat16", title="PyTorch bfloat16", unavailable="took more than 300 s"),
        Row(key="llama.cpp q8_0", title="llama.cpp Q8_0", unavailable="not installed"),
    ]
    return Record(
        measured_on="2026-11-24",
        commit="abc",
        device="cpu",
        threads=2,
        rounds=3,
        machine=describe_machine(),
        models=[ModelRecord(name="mini", title="mini", parameters=10**9, bandwidth=20e9, rows=rows)],
    )


def test_ratios_are_of_medians(record):
    found = {target.what: target for target in targets(record)}
    decode = found["decode after 16: INT4 over llama.cpp Q4_0"]
    assert (decode.value, decode.verdict) == (pytest.approx(9.9 / 9.0), "met")
    assert found["prefill of 128: INT4 over llama.cpp Q4_0"].verdict == "missed"
    assert found["KL divergence: INT4 over llama.cpp Q4_0"].value == pytest.approx(0.5)
    assert found["INT4 decode after 16: share of the roofline"].value == pytest.approx(5 / 9)
    assert found["INT4: step after 2048 over after 16"].value == pytest.approx(1.2)
    assert found["INT4: peak memory over model file and KV cache"].value == pytest.approx(1.2)
    assert found["INT4 decode after 16: times the best of pytorch float32"].value == pytest.approx(9.0)
    assert found["INT8: step after 2048 over after 16"].verdict == "not measured"


def test_the_faster_attention_of_llamacpp_counts_for_each_speed(record):
    plain = row("llama.cpp-no-flash-attention q4_0", [11.0], kl=0.02)
    sweep = plain.runs[0].sweep.model_copy(update={"decode_ms": {16: 11.0, 2048: 10.0}})
    plain = plain.model_copy(update={"runs": [plain.runs[0].model_copy(update={"sweep": sweep})]})
    [mini] = record.models
    mini = mini.model_copy(update={"rows": [*mini.rows, plain]})
    found = {each.what: each for each in targets(record.model_copy(update={"models": [mini]}))}
    assert found["decode after 16: INT4 over llama.cpp Q4_0"].value == pytest.approx(9.9 / 9.0)
    assert found["decode after 2048: INT4 over llama.cpp Q4_0"].value == pytest.approx(10.0 / 10.8)


def test_on_cuda_the_faster_row_counts_with_or_without_a_cuda_graph(record):
    rows = [
        row("onnxruntime int4", [4.0], kl=0.01),
        row("onnxruntime-cuda-graph int4", [2.0], kl=0.01),
        row("onnxruntime fp16", [5.0], kl=0.01),
        Row(key="onnxruntime-cuda-graph fp16", title="FP16", unavailable="cannot be captured"),
        row("pytorch float16", [9.0], kl=0.0),
    ]
    dense = ModelRecord(name="7b", title="7b", parameters=7 * 10**9, bandwidth=100e9, rows=rows)
    found = {
        each.what: each for each in targets(record.model_copy(update={"device": "cuda", "models": [dense]}))
    }
    assert found["INT4 decode after 16: times PyTorch eager"].value == pytest.approx(4.5)
    assert found["INT4 decode after 16: share of the roofline"].value == pytest.approx(0.5)
    fp16 = found["FP16 decode after 16: times PyTorch eager"]
    assert (fp16.value, fp16.verdict) == (pytest.approx(1.8), "missed")


def test_the_page_and_the_table_are_of_the_record(record, tmp_path: Path):
    file = tmp_path / "results" / "machine.json"
    write_record(record, file)
    assert read_record(file) == record
    other = record.machine.model_copy(update={"cpu": "Other", "features": ("avx2",)})
    rows = [row("onnxruntime int4", [9.0], kl=0.01), row("llama.cpp q4_0", [8.1], kl=0.01)]
    rows.append(row("pytorch bfloat16", [63.0], kl=0.01))  # another row than here
    models = [record.models[0].model_copy(update={"rows": rows})]
    elsewhere = record.model_copy(update={"machine": other, "models": models})
    write_record(elsewhere, file.with_name("other.json"))
    write_page(record, file, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "(results/machine.json)" in page
    assert "llama.cpp Q8_0: not installed" in page
    assert "Other, avx2, 2026-11-24 at abc |\n" in page
    assert "| mini | decode after 16: INT4 over llama.cpp Q4_0 | ≥ 1 | 1.10 | **0.900** |" in page
    assert "| mini | decode after 16: INT8 over llama.cpp Q8_0 | ≥ 1.1 | - | - |" in page
    assert "| mini | INT4 decode after 16: times the best of pytorch bfloat16 | ≥ 10 | - | **7.00** |" in page
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_readme_table(record, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert "| onnxruntime int4 | 320 | 320 | 111 | 92.6 | 0.01 ± 0.001 | 56% |" in text
