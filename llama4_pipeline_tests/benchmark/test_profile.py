"""The account of a token, from figures made by hand."""

from llama4_pipeline_tests.benchmark.profile import Account, Kind, section


def test_what_no_kernel_took_is_a_line_of_its_own():
    kinds = (Kind("MatMulNBits 1024 x 4096", 16, 600.0, 12e6), Kind("Mul", 48, 150.0, 0.0))
    text = section(
        Account(16, kinds, step_microseconds=1000.0, plain_step_microseconds=800.0), bandwidth=30e9
    )
    assert "| MatMulNBits 1024 x 4096 | 16 | 600 | 60.0% | 12.0 | 20.0 |" in text
    assert "| Mul | 48 | 150 | 15.0% |  |  |" in text
    assert "| between kernels, and in Python | | 250 | 25.0% | | |" in text
    assert "takes 400 µs at full bandwidth" in text
    assert "800 µs: 50% of the roofline" in text
