"""What a quantisation did, tensor by tensor."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorReport:
    """One quantised weight.

    Attributes:
        name: of the float initializer.
        operators: of the float graph that compute with it.
        method: that chose the codes.
        bits: of a code.
        block_size: inputs that share a scale.
        symmetric: without zero points.
        bytes_before: of the float weight.
        bytes_after: of codes, scales and zero points.
        relative_error: |W - W'| / |W| (Frobenius), for each expert.
        fallbacks: experts that another method quantised, with the reason.
        tokens: of calibration that the router sent to each expert, or that a single matrix saw; empty without
            calibration.
    """

    name: str
    operators: tuple[str, ...]
    method: str
    bits: int
    block_size: int
    symmetric: bool
    bytes_before: int
    bytes_after: int
    relative_error: tuple[float, ...]
    fallbacks: dict[int, str]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuantizeReport:
    """A whole graph.

    Attributes:
        precision: "int8" or "int4".
        method: as asked for.
        tensors: the quantised weights, in the order of the graph.
        stayed_float: initializers left in float, with the reason.
        bytes_before: of all initializers before.
        bytes_after: of all initializers after.
        seconds: wall time.
        sensitivity: where bits were mixed, the divergence in nats per token that rounding one weight alone makes, by
            weight; both weights of a MoE are rounded together and stand under the first.
        expert_sensitivity: the same of each expert alone, by its first weight; empty for a model of many experts.
    """

    precision: str
    method: str
    tensors: tuple[TensorReport, ...]
    stayed_float: dict[str, str]
    bytes_before: int
    bytes_after: int
    seconds: float
    sensitivity: dict[str, float] = field(default_factory=dict)
    expert_sensitivity: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
