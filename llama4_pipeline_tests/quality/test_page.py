"""The bounds name what misses them, and the page shows every row."""

from pathlib import Path

import pytest

from llama4_pipeline.metrics.method_result import FLOAT, MethodResult
from llama4_pipeline.metrics.quality import QualityResult
from llama4_pipeline_tests.quality.bounds import faults
from llama4_pipeline_tests.quality.measure import Compared
from llama4_pipeline_tests.quality.page import write_page


def _row(
    precision: str, method: str, size: int, ratio: float, accuracy: float = 0.7, milliseconds: float = 0.5
) -> MethodResult:
    quality = QualityResult(
        tokens=1000,
        perplexity=100 * ratio,
        perplexity_stderr=1.0,
        perplexity_ratio=ratio,
        perplexity_ratio_stderr=0.001,
        kl_divergence=ratio - 1 + 1e-6,
        kl_stderr=1e-6,
        top1_agreement=0.9,
        summaries=20,
        rougeL=0.3,
        rougeL_stderr=0.02,
        classifications=20,
        accuracy=accuracy,
        accuracy_stderr=0.03,
    )
    return MethodResult(
        precision=precision,
        method=method,
        model_bytes=size,
        weight_bytes=size,
        decode_latency_ms=milliseconds,
        quality=quality,
    )


_GOOD = [
    _row(*FLOAT, 8000, 1.0),
    _row("int8", "rtn", 2000, 1.0005),
    _row("int8", "k_quant", 2000, 1.0004),
    _row("int4", "rtn", 1000, 1.012),
    _row("int4", "mixed", 1005, 1.004),
    _row("int4", "qat", 1000, 1.002),
]
_BY_KEY = {(row.precision, row.method): row for row in _GOOD}


@pytest.mark.parametrize(
    ("worse", "fault"),
    [
        (_row("int8", "k_quant", 2000, 1.002), "int8 k_quant: perplexity +0.200%, at most +0.1%"),
        (_row("int4", "qat", 1000, 1.007), "int4 qat: perplexity +0.700%, at most +0.5%"),
        (_row("int4", "mixed", 1005, 1.008), "int4 mixed: perplexity +0.800%, at most half"),
        (_row("int4", "mixed", 1005, 1.004, accuracy=0.6), "int4 mixed: accuracy 0.600"),
        (_row("int4", "mixed", 1100, 1.004), "int4 mixed: weights of 1,100 bytes"),
        (_row("int8", "gptq", 2100, 1.0), "int8 gptq: weights of 2,100 bytes"),
        (_row("int4", "qat", 1000, 1.002, milliseconds=0.63), "int4 qat: 0.63 ms/token"),
        (_row("int8", "k_quant", 2000, 1.0, milliseconds=0.7), "int8 k_quant: 0.7 ms/token"),
    ],
)
def test_each_bound_has_its_fault(worse: MethodResult, fault: str) -> None:
    assert faults(_GOOD) == []
    [found] = faults(list((_BY_KEY | {(worse.precision, worse.method): worse}).values()))
    assert found.startswith(fault)


def test_onnx_runtime_s_own_quantizers_are_not_held_against_rtn() -> None:
    assert faults([*_GOOD, _row("int8", "qdq-static", 6000, 1.1, milliseconds=9.0)]) == []


def test_a_row_that_a_bound_needs_and_nobody_measured_is_a_fault() -> None:
    assert faults([]) == [
        "fp32 float32: not measured",
        "int4 rtn: not measured",
        "int8 k_quant: not measured",
        "int4 mixed: not measured",
        "int4 qat: not measured",
    ]
    assert faults(_GOOD[:-1]) == ["int4 qat: not measured"]


def test_the_page_has_every_row_and_its_picture(tmp_path: Path) -> None:
    compared = Compared(_GOOD, {row.name: None if row is _GOOD[0] else 2.0 for row in _GOOD})
    write_page(tmp_path / "quality.md", {"tiny": compared}, {"int8": 0.26, "int4": 0.148})
    page = (tmp_path / "quality.md").read_text()
    assert all(f"| {row.precision}" in page for row in _GOOD)
    assert "**mixed**" in page and "+0.400 ± 0.100%" in page
    assert "| 1.00 kB | 0.500 " in page
    assert "1% more bytes of weights and 25% more time a token than rtn" in page
    assert "mini in int4: 0.148 of the float32 size, at most 0.16" in page
    assert (tmp_path / "quality.png").stat().st_size > 1000
