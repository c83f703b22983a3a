from llama4_pipeline.metrics.method_result import MethodResult
from llama4_pipeline.metrics.quality import QualityResult
from llama4_pipeline.report.tradeoff import draw_tradeoff


def _row(precision: str, method: str, size: int, divergence: float) -> MethodResult:
    quality = QualityResult(kl_divergence=divergence, kl_stderr=divergence / 10, perplexity_ratio=1.0)
    return MethodResult(
        precision=precision,
        method=method,
        model_bytes=size,
        weight_bytes=size,
        decode_latency_ms=0.5,
        quality=quality,
    )


def test_every_method_has_its_point_and_its_name():
    rows = [
        _row("fp32", "float32", 8000, 0.0),
        _row("int8", "rtn", 2000, 1e-4),
        _row("int4", "gptq", 1000, 1e-2),
    ]
    [axes] = draw_tradeoff({"tiny": rows}).axes
    assert [text.get_text() for text in axes.texts] == ["int8 rtn", "int4 gptq"]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert set(points) >= {(2000, 1e-4), (1000, 1e-2)}
    assert len(draw_tradeoff({"tiny": rows, "other": rows}).axes) == 2


def test_nothing_compared_gives_no_picture():
    assert draw_tradeoff({"tiny": [], "other": [_row("fp32", "float32", 1, 0.0)]}) is None
