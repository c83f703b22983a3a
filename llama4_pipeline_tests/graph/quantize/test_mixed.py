"""Mixed precision by measured sensitivity."""

from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.quantize import quantize_graph
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.mixed import spend
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.sensitivity import Group, measure_sensitivity, weight_groups
from llama4_pipeline.graph.quantize.weights import find_weights
from llama4_pipeline.llama4.architecture import LM_HEAD


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return Calibration(tuple(rng.integers(3, 131, 40) for _ in range(10)))


def test_groups_keep_the_weights_of_an_operator_together(fused_graph: Path) -> None:
    weights = find_weights(load_graph(fused_graph).graph)[0]
    groups = weight_groups(weights)
    assert sorted(name for group in groups for name in group.weights) == sorted(w.name for w in weights)
    assert all(("experts." in group.weights[0]) == (len(group.weights) == 2) for group in groups)
    by_expert = weight_groups(weights, by_expert=True)
    assert sum(group.expert is not None for group in by_expert) == 3 * 4  # MoE layers times experts


def test_sensitivity_grows_with_coarser_codes(fused_graph: Path, calibration: Calibration) -> None:
    weights = find_weights(load_graph(fused_graph).graph)[0]
    groups = weight_groups(weights)
    fine, coarse = (
        measure_sensitivity(fused_graph, groups, scheme, calibration)
        for scheme in (Scheme(8, 16, True), Scheme(4, 16, False))
    )
    assert all(0 <= fine[group] < 0.2 * coarse[group] for group in groups)


def test_experts_add_up_to_their_stack(fused_graph: Path, calibration: Calibration) -> None:
    """An expert moves only the tokens that are sent to it."""
    weights = [
        w for w in find_weights(load_graph(fused_graph).graph)[0] if "layers.3.feed_forward.experts" in w.name
    ]
    scheme = Scheme(4, 16, False)
    (whole,) = measure_sensitivity(fused_graph, weight_groups(weights), scheme, calibration).values()
    apart = measure_sensitivity(fused_graph, weight_groups(weights, by_expert=True), scheme, calibration)
    assert len(apart) == 4
    assert sum(apart.values()) == pytest.approx(whole, rel=0.05)  # later layers see other tokens' errors too


def test_budget_goes_to_the_sensitive(fused_graph: Path) -> None:
    weights = find_weights(load_graph(fused_graph).graph)[0]
    groups = weight_groups(weights)
    sensitivity = {group: 1.0 if group.weights == (LM_HEAD,) else 1e-3 for group in groups}
    for share in (1.1, 1.3):
        budget = int(share * _bytes(weights, spend(weights, dict.fromkeys(groups, 0.0), 0)))
        schemes = spend(weights, sensitivity, budget)
        assert _bytes(weights, schemes) <= budget
        assert schemes[LM_HEAD].bits == 8
    everything = spend(weights, sensitivity, 1 << 40)
    assert {scheme.bits for scheme in everything.values()} == {8}


def test_mixed_graph_is_no_larger_than_plain(
    fused_graph: Path, calibration: Calibration, tmp_path: Path
) -> None:
    mixed = quantize_graph(
        fused_graph, tmp_path / "mixed", precision="int4", method="mixed", calibration=calibration
    )
    plain = quantize_graph(fused_graph, tmp_path / "plain", precision="int4", method="rtn")
    assert mixed.bytes_after <= plain.bytes_after
    assert set(mixed.sensitivity) == {group.weights[0] for group in _groups(fused_graph)}
    for name, experts in mixed.expert_sensitivity.items():
        assert len(experts) == 4
        assert max(experts) <= mixed.sensitivity[name] * 4  # one expert cannot do much more than all of them
    assert len(mixed.expert_sensitivity) == 3


def test_mixed_is_for_int4(fused_graph: Path, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method mixed makes int4, not int8"):
        quantize_graph(fused_graph, tmp_path, precision="int8", method="mixed", calibration=calibration)
    with pytest.raises(InputError, match="give text with --calibration"):
        quantize_graph(fused_graph, tmp_path, precision="int4", method="mixed")
    with pytest.raises(InputError, match="method mixed has no use for a block size"):
        quantize_graph(
            fused_graph, tmp_path, precision="int4", method="mixed", block_size=32, calibration=calibration
        )


def _groups(graph: Path) -> list[Group]:
    return weight_groups(find_weights(load_graph(graph).graph)[0])


def _bytes(weights: list, schemes: dict[str, Scheme]) -> int:
    return sum(w.experts * schemes[w.name].nbytes(w.rows, w.inputs) for w in weights)
