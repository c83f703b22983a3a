"""Mixed precision: bits and blocks where they pay, within the size that the precision has without it.

Rounding one weight at a time shows how much each moves the predictions. Every weight starts with the cheapest scheme;
the bytes that are left are spent one raise at a time, on the one that saves most divergence a byte. Experts, most of
the bytes and little of the divergence, pay for the table, the head and the first layers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.gptq import Gptq
from llama4_pipeline.graph.quantize.plan import DeviceName, plan_schemes
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.sensitivity import Group, measure_sensitivity, weight_groups
from llama4_pipeline.graph.quantize.weights import Weight
from llama4_pipeline.methods import MIXED, SENSITIVITY_TOKENS

_logger = logging.getLogger(__name__)

# Of all layers together, whose own sensitivity is measured: for people, no scheme depends on it.
_MOST_EXPERTS = 64
_MEASURED = Scheme(bits=4, block_size=64, symmetric=True)
# Squared error of normally distributed weights, next to the measured scheme's.
_SHARES: Mapping[Scheme, float] = {
    Scheme(bits=4, block_size=256, symmetric=True): 1.27,
    Scheme(bits=4, block_size=128, symmetric=True): 1.15,
    _MEASURED: 1.0,
    Scheme(bits=4, block_size=32, symmetric=True): 0.82,
    Scheme(bits=8, block_size=128, symmetric=True): 0.005,
}
# Of the divergence, where inputs can make up for each other; a table that is looked up has none.
_LEFT_BY_GPTQ = 0.4


class Mixed(Gptq):
    """Codes as `gptq` chooses them, schemes as `mix_schemes` does."""

    name = MIXED


def mix_schemes(
    graph: Path,
    weights: list[Weight],
    usual: Mapping[str, Scheme],
    calibration: Calibration,
    device: DeviceName = "cpu",
) -> tuple[dict[str, Scheme], dict[Group, float]]:
    """Chooses a scheme for every weight.

    Args:
        graph: directory of the fused float graph.
        weights: all of them.
        usual: fitted schemes by weight name, whose size is the budget.
        calibration: text on which the sensitivity is measured.
        device: whose kernels are to run the graph.

    Returns:
        Fitted schemes by weight name, and the sensitivity in nats per token of each group and, of a small model, of
        each expert alone.
    """
    groups = weight_groups(weights)
    experts = [group for group in weight_groups(weights, by_expert=True) if group.expert is not None]
    measured = [*groups, *experts] if len(experts) <= _MOST_EXPERTS else groups
    sensitivity = measure_sensitivity(graph, measured, _MEASURED, calibration.limited(SENSITIVITY_TOKENS))
    whole = {group: sensitivity[group] for group in groups}
    return spend(weights, whole, _bytes(weights, usual), device), sensitivity


def spend(
    weights: list[Weight], sensitivity: Mapping[Group, float], budget: int, device: DeviceName = "cpu"
) -> dict[str, Scheme]:
    """The schemes that save most divergence within a budget, by a greedy choice.

    Args:
        weights: all of them.
        sensitivity: nats per token of each group under the measured scheme.
        budget: bytes of all codes, scales and zero points.
        device: whose kernels are to run the graph.
    """
    options = {
        scheme: plan_schemes(weights, {weight.name: scheme for weight in weights}, device)
        for scheme in _SHARES
    }
    by_name = {weight.name: weight for weight in weights}
    harm = {
        group: value * (1.0 if by_name[group.weights[0]].is_table else _LEFT_BY_GPTQ)
        for group, value in sensitivity.items()
    }
    costs = {
        (group, scheme): _bytes([by_name[name] for name in group.weights], options[scheme])
        for group in sensitivity
        for scheme in options
    }
    chosen = {
        group: min(((costs[group, scheme], scheme) for scheme in options), key=lambda offer: offer[0])[1]
        for group in sensitivity
    }
    left = budget - sum(costs[choice] for choice in chosen.items())
    while raises := [
        (harm[group] * (_SHARES[now] - share) / max(price, 1), group, scheme, price)
        for group, now in chosen.items()
        for scheme, share in _SHARES.items()
        if share < _SHARES[now] and (price := costs[group, scheme] - costs[group, now]) <= left
    ]:
        _, group, scheme, price = max(raises, key=lambda offer: offer[0])
        chosen[group] = scheme
        left -= price
    for group, scheme in chosen.items():
        _logger.info("%s: %d bits, blocks of %d", ", ".join(group.weights), scheme.bits, scheme.block_size)
    return {name: options[scheme][name] for group, scheme in chosen.items() for name in group.weights}


def _bytes(weights: list[Weight], schemes: Mapping[str, Scheme]) -> int:
    return sum(weight.experts * schemes[weight.name].nbytes(weight.rows, weight.inputs) for weight in weights)
