from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, seed, settings

from llama4_pipeline_tests.conformance.summary import Summary
from llama4_pipeline_tests.conformance.trial import Outcome, Trial, run_trial, trials

REGRESSIONS = Path(__file__).parent / "regressions"
USES_EACH = 5
_EXAMPLES_A_ROUND = 3


class Rounds:
    """Property tests of few examples, each with a seed of its own, until so many trials are made.

    Left to itself, hypothesis soon varies what it has drawn in small steps; a new round draws anew. Every
    round begins with the simplest example, which is run once. The smallest failing trial is kept as a
    regression file.
    """

    def __init__(self, summary: Summary, first_seed: int) -> None:
        self._summary = summary
        self._seed = first_seed
        self._outcomes: dict[Trial, list[Outcome]] = {}

    def run(self, trials_wanted: int) -> None:
        """Makes trials; fails at the first that leaves transformers."""
        while len(self._outcomes) < trials_wanted:
            self._round(trials_wanted)
            self._seed += 1

    def _round(self, trials_wanted: int) -> None:
        failing: list[Trial] = []

        @seed(self._seed)
        @settings(
            max_examples=_EXAMPLES_A_ROUND,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(trials(USES_EACH))
        def equals_transformers(trial: Trial) -> None:
            if trial not in self._outcomes and (failing or len(self._outcomes) < trials_wanted):
                try:
                    self._try(trial)
                except BaseException:
                    failing.append(trial)
                    raise
            assert_equal(trial, self._outcomes.get(trial, []))

        try:
            equals_transformers()
        except BaseException:
            if failing:  # hypothesis ends with the smallest
                name = f"seed_{self._seed}.json"
                (REGRESSIONS / name).write_text(failing[-1].to_json())
            raise

    def _try(self, trial: Trial) -> None:
        outcomes = make(trial)
        self._outcomes[trial] = outcomes
        self._summary.add(trial, outcomes)
        assert_equal(trial, outcomes)


def make(trial: Trial) -> list[Outcome]:
    with TemporaryDirectory() as directory:
        return list(run_trial(trial, Path(directory)))


def assert_equal(trial: Trial, outcomes: list[Outcome]) -> None:
    failures = [outcome for outcome in outcomes if outcome.failure]
    assert not failures, "\n".join(
        f"{found.form}, opset {trial.opset}: {found.failure}" for found in failures
    )


def test_drawn_configurations_equal_transformers(summary: Summary) -> None:
    Rounds(summary, first_seed=1).run(3)
    assert summary.cases >= 20


@pytest.mark.conformance
@pytest.mark.timeout(7200)
def test_many_drawn_configurations_equal_transformers(summary: Summary) -> None:
    Rounds(summary, first_seed=1000).run(60)
    assert summary.cases >= 200


@pytest.mark.parametrize("file", sorted(REGRESSIONS.glob("*.json")), ids=lambda file: file.stem)
def test_what_once_failed_still_passes(file: Path) -> None:
    trial = Trial.from_json(file.read_text())
    assert_equal(trial, make(trial))
