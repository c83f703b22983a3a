import pytest

from llama4_pipeline.units import format_bytes, format_number, format_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (150.0, "150"),
        (31.04, "31.0"),
        (7.1449, "7.14"),
        (9.999, "10.0"),
        (0.01234, "0.0123"),
        (3e-11, "3e-11"),
        (-0.5, "-0.500"),
    ],
)
def test_three_significant_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 B"), (1_000, "1.00 kB"), (3_500_000, "3.50 MB"), (14_200_000_000, "14.2 GB")]
)
def test_the_largest_unit_that_gives_at_least_one(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (8.25, "8.2 s"), (90, "90 s"), (4_000, "67 min"), (30_000, "8.3 h")],
)
def test_a_time_as_a_person_says_it(seconds, text):
    assert format_seconds(seconds) == text
