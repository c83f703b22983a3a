import datetime
import re
from html.parser import HTMLParser

from llama4_pipeline.report.html import render_page
from llama4_pipeline_tests.report.conftest import invent


def _page(measurements, **changes):
    settings = {
        "command": "llama4-pipeline run --model tiny",
        "measured_on": datetime.date(2026, 1, 2),
    } | changes
    return render_page(measurements, **settings)


class _Links(HTMLParser):
    """What a page refers to, and the ids in it."""

    def __init__(self):
        super().__init__()
        self.references, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        self.references += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        assert tag not in ("script", "link", "iframe", "img")


def test_the_page_needs_nothing_but_itself(measurements):
    page = _page(measurements)
    links = _Links()
    links.feed(page)
    assert links.references == []
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert not any(name.endswith("_1") for name in links.ids)


def test_it_holds_table_plots_machine_claims_and_command(measurements):
    page = _page(measurements)
    assert page.count("<svg") == 4
    assert page.count("not measured: tensorrt_llm is not installed") == 4
    for text in (
        "ONNX Runtime INT4 is the fastest here: 7.14 ms",
        "21.0x",
        "Imaginary CPU 9000",
        "2026-01-02",
        "does not hold",
    ):
        assert text in page
    assert "llama4-pipeline run --model tiny" in page


def test_a_slow_model_has_its_milliseconds_written_out():
    slow = [
        invent("PyTorch eager", "float32", 43_200.0, 480_000_000),
        invent("ONNX Runtime INT4", "int4", 1240.0, 73_000_000),
    ]
    assert "ONNX Runtime INT4 is the fastest here: 1,240 ms per token" in _page(slow)


def test_random_weights_are_announced(measurements):
    assert "weights of this model are random" not in _page(measurements)
    page = _page(measurements, random_weights=True)
    assert "weights of this model are random" in page
    assert "21.400" not in page


def test_text_from_outside_is_escaped(measurements):
    broken = measurements[-1].model_copy(update={"unavailable": "<b>no</b> & never"})
    page = _page([*measurements[:-1], broken], command="run <model>")
    assert "&lt;b&gt;no&lt;/b&gt; &amp; never" in page
    assert "run &lt;model&gt;" in page


def test_a_page_without_a_measured_engine_still_says_why(measurements):
    page = _page(measurements[-1:])
    assert "<svg" not in page
    assert "tensorrt_llm is not installed" in page
