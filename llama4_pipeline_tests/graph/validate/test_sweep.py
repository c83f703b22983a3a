import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.validate.sweep import sweep_cases, sweep_lengths
from llama4_pipeline.graph.validate.uses import POSITIONS, USES
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG

ARCHITECTURE = Architecture.from_config(PECULIAR_CONFIG | {"attention_chunk_size": 100, "floor_scale": 300})


def test_default_lengths_have_the_borders_and_a_sample() -> None:
    lengths = sweep_lengths(ARCHITECTURE, "default", 4096)

    borders = {1, 2, 3, 99, 100, 101, 199, 200, 201, 299, 300, 301, 599, 600, 601, 511, 512, 513, 2047, 2048}
    assert borders <= set(lengths)
    assert max(lengths) == 2048
    assert len(lengths) < 60


def test_all_lengths_are_all() -> None:
    assert sweep_lengths(ARCHITECTURE, "all", 4096) == list(range(1, 2049))
    assert sweep_lengths(ARCHITECTURE, "all", 50) == list(range(1, 51))


def test_a_length_that_the_graph_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="length 65: the graph holds 1 to 64"):
        sweep_lengths(ARCHITECTURE, [1, 65], 64)


def test_explicit_lengths_run_at_every_batch_and_every_use_at_every_batch() -> None:
    cases = list(sweep_cases([3, 20], [3, 20], [1, 4], tokens=range(9), max_context=64))

    prefills = {(case.length, case.batch) for case in cases if case.use == "prefill"}
    assert {(3, 1), (3, 4), (20, 1), (20, 4)} <= prefills
    assert {(case.use, case.padding) for case in cases if case.batch == 4} >= {
        (use, padding) for use in USES for padding in ("none", "left", "right")
    }
    assert {case.positions for case in cases} == set(POSITIONS)


def test_every_length_of_the_default_sweep_is_run() -> None:
    lengths = sweep_lengths(ARCHITECTURE, "default", 4096)
    cases = list(sweep_cases("default", lengths, [1, 8], tokens=range(9), max_context=4096))

    assert {case.length for case in cases} == set(lengths)
    assert {case.batch for case in cases} == {1, 8}
