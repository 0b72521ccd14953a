"""The tests behind the verdicts, against straightforward code; and what a plan asks for."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from hiddenweights.claims import plan
from hiddenweights.claims.verdict import (
    CONTRADICT,
    CONTRADICTED,
    ERROR,
    FLOOR,
    OPEN,
    SPENT,
    SUPPORTED,
    judge,
    outcomes,
    padded,
    power,
    share,
)

RNG = np.random.default_rng(3)


def by_hand(values: list[list[float]], part: float) -> tuple[list[bool], list[bool]]:
    """Each comparison's two tests, one at a time, at `part` of their levels."""
    m = len(values)
    spreads = [np.var(own, ddof=1) for own in values if len(own) > 1]  # a single value has none
    rms = np.sqrt(np.mean(spreads)) if spreads else 0.0
    above, below = [], []
    for own in values:
        if len(own) < 3:
            above.append(False)
            below.append(False)
            continue
        n, mean, sd = len(own), np.mean(own), np.std(own, ddof=1)
        level = CONTRADICT / m ** float(power(np.array(float(n))))
        p = stats.ttest_1samp(own, 0, alternative="greater").pvalue
        above.append(bool(p < (ERROR - level) * part))
        t = mean / (max(sd, FLOOR * rms) / np.sqrt(n))
        below.append(bool(stats.t.cdf(t, n - 1) < level * part))
    return above, below


@pytest.mark.parametrize("m", [1, 2, 9])
def test_each_test_is_what_it_says(m: int) -> None:
    decided = 0
    for _ in range(200):
        values = [[*RNG.normal(RNG.normal(0, 2), RNG.uniform(0.1, 2), RNG.integers(1, 7))] for _ in range(m)]
        above, below = outcomes(padded(values, [0.0] * m), anytime=False)
        assert ([*above], [*below]) == by_hand(values, 1.0)
        decided += above.sum() + below.sum()
    assert decided > 20


def test_the_levels_are_those_that_the_documentation_states() -> None:
    """docs/analysis.md states them, and benchmarks/claims.py measured their error rates."""
    assert power(np.array([3.0, 5.0, 10.0, 20.0])) == pytest.approx([0.42, 0.76, 1, 1])
    assert (CONTRADICT, ERROR) == (0.012, 0.047)
    assert sum(map(share, range(3, 10**5))) == pytest.approx(1.6, abs=1e-3)


def test_a_look_again_and_again_is_one_look_after_the_other() -> None:
    for _ in range(100):
        values = RNG.normal(RNG.normal(0, 1, (3, 1)), 1, (3, 7))
        above, below = outcomes(values, anytime=True)
        looks = [by_hand([[*row[:n]] for row in values], SPENT / (n * (n - 1))) for n in range(3, 8)]
        assert [*above] == [any(look[0][i] for look in looks) for i in range(3)]
        assert [*below] == [any(look[1][i] for look in looks) for i in range(3)]
        longer = np.concatenate([values, RNG.normal(size=(3, 4))], axis=1)  # what is decided stays decided
        assert (outcomes(longer, anytime=True)[0] >= above).all()


def test_a_verdict_needs_three_pairs_of_every_comparison() -> None:
    sure = [9.0, 9.1, 9.2]
    assert judge([sure, sure], [0, 0]).verdict == SUPPORTED
    assert judge([sure, [9.0, 9.1]], [0, 0]).verdict == OPEN
    assert judge([sure, []], [0, 0]).verdict == OPEN
    assert judge([[-9.0, -9.1, -9.2], []], [0, 0]).verdict == CONTRADICTED
    assert judge([], []).verdict == OPEN
    assert judge([sure], [9.5]).verdict != SUPPORTED


def test_equal_values_decide_nothing() -> None:
    for sign in (1, -1):
        values = [[100 * (0.93 + part) - 100 * (0.901 + part) for part in (0.0, 0.0123, 0.0277)]]
        assert np.std(values) > 0  # equal but for the last bits
        assert judge(values, [-sign], anytime=sign > 0).verdict == OPEN
        assert judge([[9.0, 9.1, 9.2], [sign, sign, sign]], [0, 0]).verdict == (
            OPEN if sign > 0 else CONTRADICTED  # the spread of the other comparison counts
        )


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_few_test_images_make_no_wrong_verdicts(step: float) -> None:
    """Accuracies in steps of `step` standard deviations, whose mean is a margin between two steps."""
    for place in (0.1, 0.3, 0.5):
        drawn = np.round(RNG.normal(size=(10_000, 1, 3)) / step + place) * step - place * step
        above, below = outcomes(drawn, anytime=False)
        assert (above | below).mean() < 0.06  # three equal values: up to 32%


def goals(values: list[list[float]]) -> list[int]:
    margins = [0.0] * len(values)
    return plan.targets(values, margins, judge(values, margins, anytime=True))


def test_a_plan_takes_one_seed_of_all_and_then_follows_the_suspects() -> None:
    sure = [9.0, 9.1, 9.2]
    assert goals([[], [], []]) == [1, 1, 1]
    assert goals([[]]) == [3]  # alone it can decide nothing sooner
    assert goals([[1.0], [], [2.0]]) == [1, 1, 1]
    assert goals([[1.0], [-1.0], [2.0]]) == [1, 3, 1]
    assert goals([[1.0], [1.0], [2.0]]) == [3, 3, 3]
    assert goals([sure, [1.0, -1.0, 5.0], sure]) == [3, 4, 3]
    assert goals([sure, [1.0, -1.0, 5.0], [1.0, -1.1, 0.0]]) == [3, 3, 4]


def test_a_chance_is_how_often_it_happens() -> None:
    values = [[1.0, 1.6, 0.9], [0.4, 1.4, 0.7]]
    found = plan.chance(values, [0.0, 0.0], [6, 6], anytime=True)
    hits = []
    for _ in range(2000):
        future = []
        for own in values:
            n = len(own)
            sd = np.std(own, ddof=1) * np.sqrt((n - 1) / RNG.chisquare(n - 1))
            centre = RNG.normal(np.mean(own), sd / np.sqrt(n))
            future.append([*own, *RNG.normal(centre, sd, 6 - n)])
        hits.append(judge(future, [0.0, 0.0], anytime=True).verdict != OPEN)
    assert found == pytest.approx(np.mean(hits), abs=0.1)  # four standard errors of 400 draws
    assert 0.2 < found < 0.9


def test_hope_is_the_better_of_two_ways_to_spend_what_is_left() -> None:
    values, margins = [[1.0, 0.6, 1.9], [-0.9, -0.3, -0.7], [0.8, 0.4, 1.9]], [0.0] * 3
    judged = judge(values, margins, anytime=True)

    def goals_of(group: Sequence[int]) -> list[int]:  # six more values
        return [3 + 6 // len(group) if i in group else 3 for i in range(3)]

    found = plan.hope(values, margins, judged, goals_of)
    ways = [plan.chance(values, margins, goals, anytime=True) for goals in ([5, 5, 5], [3, 9, 3])]
    assert found is not None
    assert found >= max(way or 0.0 for way in ways) > 0.2
    single = judge(values[1:2], [0.0], anytime=True)
    alone = plan.hope(values[1:2], [0.0], single, lambda group: [9])
    assert alone == plan.chance(values[1:2], [0.0], [9], anytime=True)
    assert plan.hope([[1.0], [2.0]], [0.0, 0.0], judge([[1.0], [2.0]], [0, 0]), goals_of) is None


def test_a_chance_is_unknown_without_a_spread() -> None:
    assert plan.chance([[1.0], [2.0]], [0, 0], [3, 3], anytime=True) is None
    assert plan.chance([[1.0, 2.0], []], [0, 0], [3, 1], anytime=True) is None
    assert plan.chance([[1.0, 1.1, 1.2], [2.0]], [0, 0], [3, 3], anytime=True) is not None
