import pytest

from llama4_pipeline.report.claims import FAILS, HOLDS, OPEN, check_claims
from llama4_pipeline.report.rows import table_rows
from llama4_pipeline_tests.report.conftest import invent


def _verdicts(measurements, random_weights=False):
    return {
        each.claim: each for each in check_claims(table_rows(measurements, random_weights=random_weights))
    }


def _only(results, words):
    [result] = [result for claim, result in results.items() if words in claim]
    return result


def test_each_claim_is_judged_by_its_ratio_here(measurements):
    results = _verdicts(measurements)
    faster = _only(results, "INT8 is 2 to 3 times")
    assert faster.verdict == HOLDS
    assert faster.here == "150 ms (PyTorch eager) to 11.2 ms (ONNX Runtime INT8), 92.5% less"
    assert _only(results, "file is 30 to 50% smaller").verdict == FAILS
    assert _only(results, "quarter of the size").verdict == HOLDS


def test_what_was_not_measured_is_not_judged(measurements):
    tensorrt = _only(_verdicts(measurements), "TensorRT-LLM")
    assert tensorrt.verdict == OPEN
    assert "not installed" in tensorrt.here
    alone = _verdicts(measurements[:1])
    assert {each.verdict for each in alone.values()} == {OPEN}


def test_perplexity_of_random_weights_is_not_judged(measurements):
    assert _only(_verdicts(measurements), "perplexity").verdict == HOLDS
    result = _only(_verdicts(measurements, random_weights=True), "perplexity")
    assert (result.verdict, result.here) == (OPEN, "random weights")


@pytest.mark.parametrize(("perplexity", "verdict"), [(10.099, HOLDS), (10.1, FAILS)])
def test_less_is_less(perplexity, verdict):
    rows = [
        invent("PyTorch eager", "float32", 100.0, 1000, perplexity=10.0),
        invent("ONNX Runtime INT8", "int8", 50.0, 500, perplexity=perplexity),
    ]
    assert _only(_verdicts(rows), "perplexity").verdict == verdict


def test_a_slower_engine_is_told_so(measurements):
    slow = invent("ONNX Runtime INT8", "int8", 300.0, 126_000_000, perplexity=22.0)
    results = _verdicts([measurements[0], slow])
    assert _only(results, "2 to 3 times").here.endswith("100% more")
    assert _only(results, "perplexity").verdict == FAILS
