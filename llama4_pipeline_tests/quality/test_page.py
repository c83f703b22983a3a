"""The bounds name what misses them, and the page shows every row."""

from pathlib import Path

from llama4_pipeline.metrics.evaluate import QualityResult
from llama4_pipeline.metrics.tradeoff import FLOAT, MethodResult
from llama4_pipeline_tests.quality.bounds import faults
from llama4_pipeline_tests.quality.measure import Compared
from llama4_pipeline_tests.quality.page import write_page


def _row(precision: str, method: str, size: int, ratio: float, accuracy: float = 0.7) -> MethodResult:
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
        precision=precision, method=method, model_bytes=size, weight_bytes=size, quality=quality
    )


_GOOD = [
    _row(*FLOAT, 8000, 1.0),
    _row("int8", "rtn", 2000, 1.0004),
    _row("int4", "rtn", 1000, 1.012),
    _row("int4", "mixed", 1005, 1.004),
    _row("int4", "qat", 1000, 1.002),
]


def test_each_bound_has_its_fault() -> None:
    assert faults(_GOOD) == []
    bad = [
        *_GOOD[:1],
        _row("int8", "rtn", 2000, 1.002),
        _row("int4", "rtn", 1000, 1.012),
        _row("int4", "mixed", 1100, 1.008, accuracy=0.6),
        _row("int4", "qat", 1000, 1.007),
    ]
    assert [fault.partition(":")[0] for fault in faults(bad)] == [
        "int8 rtn",
        "int4 qat",
        "int4 mixed",
        "int4 mixed",
        "int4 mixed",
    ]


def test_the_page_has_every_row_and_its_picture(tmp_path: Path) -> None:
    compared = Compared(_GOOD, {row.name: None if row is _GOOD[0] else 2.0 for row in _GOOD})
    write_page(tmp_path / "quality.md", {"tiny": compared}, {"int8": 0.26, "int4": 0.148})
    page = (tmp_path / "quality.md").read_text()
    assert all(f"| {row.precision}" in page for row in _GOOD)
    assert "**mixed**" in page and "+0.400 ± 0.100%" in page
    assert "mini in int4: 0.148 of the float32 size, at most 0.16" in page
    assert (tmp_path / "quality.png").stat().st_size > 1000
