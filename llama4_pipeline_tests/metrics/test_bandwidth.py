"""The roofline's bandwidth."""

from llama4_pipeline.metrics.bandwidth import measure_read_bandwidth


def test_read_bandwidth_is_of_a_possible_size():
    assert 5e8 < measure_read_bandwidth(threads=1) < 5e12
