"""What is fetched for a machine without network, and how it is cut."""

from llama4_pipeline_tests.benchmark.wheels import cut, wanted


def test_what_the_benchmark_imports_is_fetched_and_what_that_requires():
    locked = "# a lock\nnumpy==2.4.6\nonnxruntime==1.32.0\nonnx_ir==1.1.0\n"
    locked += "pydantic_core==2.46.4\ndagster==1.13.27\ntorch==2.13.0\n"
    assert wanted(locked, {"onnx-ir"}) == ["numpy==2.4.6", "pydantic_core==2.46.4", "onnxruntime-gpu>=1.31.1"]


def test_pieces_join_to_the_file(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(bytes(range(250)))
    pieces = cut(wheel, 100)
    assert [piece.name for piece in pieces] == ["a.whl.00", "a.whl.01", "a.whl.02"]
    assert b"".join(piece.read_bytes() for piece in sorted(tmp_path.iterdir())) == bytes(range(250))
