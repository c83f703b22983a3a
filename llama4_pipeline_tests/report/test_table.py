import json

import pandas as pd
import pytest

from llama4_pipeline.metrics.quality import QualityResult
from llama4_pipeline.report.table import benchmark_table, markdown_tables, write_tables
from llama4_pipeline_tests.report.conftest import invent

_SETTINGS = {"threads", "prompt_tokens", "new_tokens", "repeats"}


def test_figures_stand_under_names_with_units(measurements):
    table = benchmark_table(measurements).set_index("engine")
    int4 = table.loc["ONNX Runtime INT4"]
    assert int4["latency_p50_ms"] == 7.14
    assert int4["speedup_over_eager"] == pytest.approx(150 / 7.14)
    assert int4["tokens_per_second_batch_1"] == pytest.approx(1000 / 7.14)
    assert int4["model_bytes"] == 73_000_000
    assert json.loads(int4["providers"]) == {"CPUExecutionProvider": 390}
    assert json.loads(int4["machine"])["cpu"] == "Imaginary CPU 9000"
    assert list(table.index) == [each.engine for each in measurements]


def test_an_engine_that_is_missing_has_a_reason_and_no_figure(measurements):
    row = benchmark_table(measurements).set_index("engine").loc["TensorRT-LLM"]
    figures = row[
        [name for name in row.index if isinstance(row[name], int | float) and name not in _SETTINGS]
    ]
    assert len(figures) > 20
    assert figures.isna().all()
    assert row["unavailable"].startswith("tensorrt_llm is not installed")


def test_random_weights_take_the_place_of_quality(measurements):
    table = benchmark_table(measurements, random_weights=True)
    assert (
        table[["perplexity", "perplexity_stderr", "rouge1", "rouge2", "rougeL", "accuracy"]]
        .isna()
        .all(axis=None)
    )
    assert set(table["weights"]) == {"random weights"}
    assert table["latency_p50_ms"].notna().sum() == table["kl_divergence"].notna().sum() + 1 == 4
    *_, quality = (
        part for part in markdown_tables(measurements, random_weights=True).split("\n\n") if "|" in part
    )
    lines = [line for line in quality.splitlines() if "Runtime" in line or "PyTorch" in line]
    assert [line.count("random weights") for line in lines] == [3, 3, 3, 3]


def test_files_read_back_as_the_same_table(measurements, tmp_path):
    write_tables(measurements, tmp_path)
    table = benchmark_table(measurements)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "benchmark.parquet"), table, check_dtype=False)
    from_csv = pd.read_csv(tmp_path / "benchmark.csv", float_precision="round_trip")
    assert list(from_csv.columns) == list(table.columns)
    assert from_csv["latency_p99_ms"].tolist()[:4] == table["latency_p99_ms"].tolist()[:4]
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8") == markdown_tables(measurements)


def test_markdown_is_narrow_and_names_what_was_not_measured(measurements):
    text = markdown_tables(measurements)
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("| TensorRT-LLM") == 4
    assert "- TensorRT-LLM: tensorrt_llm is not installed; it needs an NVIDIA GPU" in text
    assert "21.0x" in text
    assert "21.400 ± 0.310" in text


def test_the_share_of_tokens_whose_expert_changes_has_its_column(measurements):
    moved = invent("ONNX Runtime INT4", "int4", 7.14, 73_000_000, expert_change_share=0.0173)
    quality = markdown_tables([measurements[0], moved]).split("\n\n")[-1]
    heads, _, pytorch, int4 = ([cell.strip() for cell in line.split("|")] for line in quality.splitlines())
    column = heads.index("rerouted")
    assert (pytorch[column], int4[column]) == ("-", "1.7%")


def test_rows_that_share_an_engine_are_told_apart_by_precision(measurements):
    half = invent("PyTorch eager", "bfloat16", 140.0, 240_000_000)
    assert "PyTorch eager bfloat16" in markdown_tables([*measurements, half])


def test_the_first_pytorch_row_is_the_baseline_whatever_its_precision(measurements):
    half = invent("PyTorch eager FP16", "float16", 100.0, 240_000_000)
    table = benchmark_table([half, *measurements]).set_index("engine")
    assert table.loc["PyTorch eager FP16", "speedup_over_eager"] == 1.0
    assert table.loc["PyTorch eager", "speedup_over_eager"] == pytest.approx(100 / 150)


def test_without_pytorch_there_is_no_speedup(measurements):
    assert benchmark_table(measurements[1:])["speedup_over_eager"].isna().all()


def test_every_error_stands_beside_its_figure(measurements):
    columns = set(benchmark_table(measurements).columns)
    for name in QualityResult.model_fields.keys() & columns:
        error = {"kl_divergence": "kl", "top1_agreement": "top1"}.get(name, name) + "_stderr"
        assert error in columns or error not in QualityResult.model_fields, name
