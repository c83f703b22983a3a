"""Two sets of values of one step against each other: figures per probe, worst token, changed experts."""

from dataclasses import dataclass

import numpy as np

from llama4_pipeline.graph.validate.probes import LOGITS, Probe, StepValues
from llama4_pipeline.graph.validate.uses import Step
from llama4_pipeline.probabilities import kl_divergence, log_softmax

TIE_MARGIN = 1e-4
"""Of the standard deviation of logits: rounding alone may turn a choice between two that are closer."""

_LEAST_DEVIATION = 0.1  # of the root mean square: one number, or equal ones, have none
_NOTHING = 1e-30


@dataclass(frozen=True)
class Tolerance:
    """Bounds of a comparison.

    Attributes:
        logits_error: Largest error of any logit, relative to the standard deviation of the reference's
            logits.
        cosine: Least cosine between a layer's output and the reference's, over all real tokens of a step.
        block_error: Largest error of any inner value, relative to the standard deviation of the reference's.
        kl_divergence: Largest mean KL divergence, in nats, of what a layer's output would predict through
            the final norm and the head; None leaves it out.
        identical_greedy: Whether greedy continuations must be the same tokens.
    """

    logits_error: float = 1e-4
    cosine: float = 0.99999
    block_error: float = 1e-3
    kl_divergence: float | None = None
    identical_greedy: bool = True

    def __str__(self) -> str:
        bounds = [f"cosine of every layer {self.cosine:g}"]
        if self.logits_error < _INFINITE:
            bounds += [f"error of the logits {self.logits_error:g}", f"of inner values {self.block_error:g}"]
        if self.kl_divergence is not None:
            bounds.append(f"KL divergence {self.kl_divergence:g} nats")
        greedy = "identical" if self.identical_greedy else "shown, not judged"
        return f"{', '.join(bounds)}; greedy text {greedy}"


_INFINITE = float("inf")
TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(),
    "float16": Tolerance(_INFINITE, 0.999, _INFINITE, kl_divergence=0.001, identical_greedy=False),
    # Random models of four layers, 64 wide, lost up to 0.0065 nats by 8 bits of ours, 0.012 by qdq-static (whose least
    # cosine was 0.983), and 0.14 by 4 bits (0.856).
    "int8": Tolerance(_INFINITE, 0.99, _INFINITE, kl_divergence=0.02, identical_greedy=False),
    "int4": Tolerance(_INFINITE, 0.9, _INFINITE, kl_divergence=0.2, identical_greedy=False),
}


@dataclass(frozen=True)
class Figures:
    """How one probe fared in one step, over real tokens.

    Attributes:
        cosine: Of all tokens' values taken as one vector.
        token_cosine: Of the worst token.
        error: Largest absolute difference relative to the reference's standard deviation.
        worst: Row and column (in this step) of the token with the largest error.
        token_error: float64 [batch, sequence], NaN at tokens that were not compared.
        products: Sums of reference times value, reference squared, value squared: cosines of several steps add up.
    """

    probe: Probe
    cosine: float
    token_cosine: float
    error: float
    worst: tuple[int, int]
    token_error: np.ndarray
    products: np.ndarray


@dataclass(frozen=True)
class ExpertChanges:
    """Tokens of one layer that get other experts than in the reference; ties are not among them."""

    layer: int
    tokens: int
    changed: int
    ties: int


class StepComparison:
    """Compares the steps of one case in order.

    A token whose choice of expert is a tie in the reference (the chosen and the next logit are closer than
    rounding) and falls out otherwise is not wrong. It and the later tokens of its row, which attend to it,
    are left out from that layer on, and counted.
    """

    def __init__(self, probes: tuple[Probe, ...], experts_per_token: int, exact: bool) -> None:
        self._probes = probes
        self._experts_per_token = experts_per_token
        self._exact = exact
        self._dropped_rows: np.ndarray | None = None

    def compare(
        self, step: Step, reference: StepValues, graph: StepValues
    ) -> tuple[list[Figures], list[ExpertChanges]]:
        """Figures of every probe and expert changes of every MoE layer, in the order of computation."""
        compared = step.real.copy()
        if self._dropped_rows is not None:
            compared &= ~self._dropped_rows[:, None]
        figures, changes = [], []
        for probe in self._probes:
            expected, got = reference.values[probe.name], graph.values[probe.name]
            if probe.block == "router_logits":
                change, tied = _expert_changes(
                    probe, expected, got, compared, self._experts_per_token, self._exact
                )
                changes.append(change)
                figures.append(measure(probe, expected, got, compared))
                compared &= ~np.logical_or.accumulate(tied, axis=1)
            else:
                figures.append(measure(probe, expected, got, compared))
        dropped = (step.real & ~compared).any(axis=1)
        self._dropped_rows = dropped if self._dropped_rows is None else dropped | self._dropped_rows
        return figures, changes


def measure(probe: Probe, expected: np.ndarray, got: np.ndarray, compared: np.ndarray) -> Figures:
    """Compares one value.

    Args:
        probe: What it is.
        expected: float [batch, sequence, width], the reference.
        got: Same shape.
        compared: bool [batch, sequence].
    """
    token_error = np.full(compared.shape, np.nan)
    a, b = expected[compared].astype(np.float64), got[compared].astype(np.float64)
    if not a.size:
        return Figures(probe, 1.0, 1.0, 0.0, (0, 0), token_error, np.zeros(3))
    deviation = max(float(a.std()), _LEAST_DEVIATION * float(np.sqrt((a * a).mean())), _NOTHING)
    with np.errstate(invalid="ignore"):
        errors = np.abs(a - b).max(axis=-1) / deviation
    errors[~np.isfinite(errors)] = np.inf
    token_error[compared] = errors
    row, column = np.unravel_index(int(np.nanargmax(token_error)), token_error.shape)
    products = np.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)])
    token_cosines, cosine = cosine_of(products), cosine_of(products.sum(axis=-1))
    return Figures(
        probe,
        float(cosine),
        float(token_cosines.min()),
        float(errors.max()),
        (int(row), int(column)),
        token_error,
        products.sum(axis=-1),
    )


def beyond(figures: Figures, tolerance: Tolerance) -> tuple[str, float, float] | None:
    """The first figure that passes its bound, as (name, value, bound), or None."""
    bound = tolerance.logits_error if figures.probe.block == LOGITS else tolerance.block_error
    if figures.error > bound:
        return "error", figures.error, bound
    if figures.probe.block in ("output", LOGITS) and figures.cosine < tolerance.cosine:
        return "cosine", figures.cosine, tolerance.cosine
    return None


def divergence_of_last(step: Step, expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """KL divergence in nats of each row's last real token, float64 [batch].

    Args:
        step: whose tokens these are.
        expected: the reference's logits [batch, sequence, vocab].
        got: the graph's.
    """
    picked = last_tokens(step)
    return kl_divergence(log_softmax(expected[picked]), log_softmax(got[picked]))


def last_tokens(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each row's last real token."""
    return np.arange(step.batch), np.array([row.nonzero()[0][-1] for row in step.real])


def chosen_experts(logits: np.ndarray, count: int) -> np.ndarray:
    """int64 [..., count], the experts with the highest router logits in ascending order of number."""
    return np.sort(np.argsort(-logits, axis=-1, kind="stable")[..., :count], axis=-1)


def cosine_of(products: np.ndarray) -> np.ndarray:
    """Cosine from a product and two squared norms, float64 [3, ...]; two zero vectors agree, NaN does not."""
    product, a, b = products
    both_zero = (a <= _NOTHING) & (b <= _NOTHING)
    with np.errstate(invalid="ignore"):
        cosine = np.where(both_zero, 1.0, product / np.maximum(np.sqrt(a * b), _NOTHING))
    return np.where(np.isfinite(cosine), cosine, -1.0)


def _expert_changes(
    probe: Probe, expected: np.ndarray, got: np.ndarray, compared: np.ndarray, count: int, exact: bool
) -> tuple[ExpertChanges, np.ndarray]:
    differs = (chosen_experts(expected, count) != chosen_experts(got, count)).any(axis=-1) & compared
    tied = np.zeros_like(differs)
    if exact and differs.any() and count < expected.shape[-1]:
        ranked = -np.sort(-expected, axis=-1)
        gap = ranked[..., count - 1] - ranked[..., count]
        tied = differs & (gap < TIE_MARGIN * expected[compared].std())
    changed = int((differs & ~tied).sum())
    return ExpertChanges(probe.layer, int(compared.sum()), changed, int(tied.sum())), tied
