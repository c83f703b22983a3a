"""The worst and the mean of all comparisons, per probe."""

from dataclasses import replace

import numpy as np

from llama4_pipeline.graph.validate.compare import ExpertChanges, Figures, Tolerance, cosine_of
from llama4_pipeline.graph.validate.probes import FINAL_NORM, LOGITS, Probe
from llama4_pipeline.graph.validate.report import Failure, ProbeRow, Spot
from llama4_pipeline.graph.validate.uses import Case, Step


class Tally:
    """Gathers figures step by step."""

    def __init__(self, probes: tuple[Probe, ...]) -> None:
        self._probes = probes
        self._rows: dict[str, ProbeRow] = {}
        self._products: dict[str, np.ndarray] = {}
        self._routers: dict[int, ExpertChanges] = {}
        self._divergence: dict[str, list[float]] = {}
        mapped = [
            probe.name for probe in probes if probe.block == "output" or probe.block in (FINAL_NORM, LOGITS)
        ]
        self._map_rows = {name: row for row, name in enumerate(mapped)}
        self._map = np.zeros((len(mapped), 0), dtype=np.float32)
        self.compared_tokens = 0

    def add(self, case: Case, step: Step, figures: list[Figures], changes: list[ExpertChanges]) -> None:
        """Takes in the figures of one step."""
        self.compared_tokens += int(step.real.sum())
        for found in figures:
            self._add_row(found, Spot.of(case, step, *found.worst))
            if found.probe.name in self._map_rows:
                self._add_to_map(self._map_rows[found.probe.name], step.past, found.token_error)
        for change in changes:
            before = self._routers.get(change.layer, ExpertChanges(change.layer, 0, 0, 0))
            self._routers[change.layer] = ExpertChanges(
                change.layer,
                before.tokens + change.tokens,
                before.changed + change.changed,
                before.ties + change.ties,
            )

    def add_divergence(self, divergence: dict[str, np.ndarray]) -> None:
        """Takes in KL divergences in nats, float [tokens] by name of probe."""
        for name, values in divergence.items():
            self._divergence.setdefault(name, []).extend(values.tolist())

    def rows(self) -> tuple[ProbeRow, ...]:
        """Every probe over all cases, in the order of computation."""
        found = []
        for probe in self._probes:
            divergence = self._divergence.get(probe.name)
            found.append(
                replace(
                    self._rows[probe.name],
                    cosine=float(cosine_of(self._products[probe.name])),
                    kl_divergence=float(np.mean(divergence)) if divergence else None,
                )
            )
        return tuple(found)

    def routers(self) -> tuple[ExpertChanges, ...]:
        """Expert changes of every MoE layer."""
        return tuple(self._routers[layer] for layer in sorted(self._routers))

    def error_by_position(self) -> np.ndarray:
        """float32 [layers + 2, positions]: largest error of each layer's output, final norm and logits."""
        return self._map

    def first_beyond(self, tolerance: Tolerance) -> list[Failure]:
        """The first layer whose cosine or mean KL divergence passes its bound."""
        for row in self.rows():
            if row.block not in ("output", LOGITS):
                continue
            if row.cosine < tolerance.cosine:
                return [Failure(row.layer, row.block, "cosine", row.cosine, tolerance.cosine, row.worst)]
            limit, value = tolerance.kl_divergence, row.kl_divergence
            if limit is not None and value is not None and value > limit:
                return [Failure(row.layer, row.block, "KL divergence", value, limit, row.worst)]
        return []

    def _add_row(self, found: Figures, spot: Spot) -> None:
        probe = found.probe
        self._products[probe.name] = self._products.get(probe.name, np.zeros(3)) + found.products
        before = self._rows.get(probe.name)
        if before is None:
            self._rows[probe.name] = ProbeRow(
                probe.layer, probe.block, found.cosine, found.token_cosine, found.error, spot
            )
            return
        self._rows[probe.name] = replace(
            before,
            token_cosine=min(before.token_cosine, found.token_cosine),
            error=max(before.error, found.error),
            worst=spot if found.error > before.error else before.worst,
        )

    def _add_to_map(self, row: int, past: int, token_error: np.ndarray) -> None:
        end = past + token_error.shape[1]
        if end > self._map.shape[1]:
            grown = np.full((self._map.shape[0], end), np.nan, dtype=np.float32)
            grown[:, : self._map.shape[1]] = self._map
            self._map = grown
        errors = np.fmax.reduce(token_error, axis=0)
        self._map[row, past:end] = np.fmax(self._map[row, past:end], errors)
