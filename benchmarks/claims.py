"""How often a claim gets a wrong or a right verdict, and what that costs, by simulated differences.

    python -m benchmarks.claims [steps] [wrong] [methods] [floor] [anytime] [cells] [futility]

At the margin every verdict but "not enough data" is wrong. The cases differ in three things. The standard
deviations of the m comparisons are equal, spread tenfold, or ten times as large in a quarter of them. The
comparisons share seeds (correlation 0, 0.5 or 0.9). All comparisons lie at the margin, or only the one with
the largest standard deviation, with the others far above. We find the worst case with some of the draws and
measure it with new ones, because the largest of many measured rates would overstate it.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import digamma, polygamma, stdtrit

from hiddenweights.claims import plan
from hiddenweights.claims.verdict import (
    CONTRADICT,
    CONTRADICTED,
    ERROR,
    OPEN,
    SUPPORTED,
    judge,
    outcomes,
)

SEEDS, COMPARISONS, SHARED = (3, 5, 10), (1, 4, 16, 40), (0.0, 0.5, 0.9)
SPREADS = ("equal", "tenfold", "quarter")
KINDS = ("normal", "skewness 1", "skewness 1, mirrored", "skewness 2", "skewness 2, mirrored", "heavy tails")
SCOUTING, FRESH = 3_000, 40_000
LOOKS = 30  # the last look in the simulation of repeated looks
RESULTS = Path(__file__).parent / "results" / "claims.json"
Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rule = Callable[[Array], tuple[Flags, Flags]]


def fixed(distances: Array) -> tuple[Flags, Flags]:
    """The rule for a number of seeds that was fixed in advance."""
    return outcomes(distances, anytime=False)


def anytime(distances: Array) -> tuple[Flags, Flags]:
    """The rule for looking after every seed."""
    return outcomes(distances, anytime=True)


# --- other rules, at the same levels ---------------------------------------------------------------------


def bonferroni(distances: Array) -> tuple[Flags, Flags]:
    """A t test per comparison; "contradicted" with Bonferroni's full correction."""
    freedom = distances.shape[-1] - 1
    return _tests(distances, distances.var(-1, ddof=1), freedom)


def pooled(distances: Array) -> tuple[Flags, Flags]:
    """One variance for all comparisons."""
    m, n = distances.shape[-2:]
    return _tests(distances, distances.var(-1, ddof=1).mean(-1, keepdims=True), m * (n - 1))


def moderated(distances: Array) -> tuple[Flags, Flags]:
    """Variances moderated by empirical Bayes (Smyth 2004), as limma does."""
    m, n = distances.shape[-2:]
    variance, freedom = distances.var(-1, ddof=1), n - 1
    if m == 1:
        return _tests(distances, variance, freedom)
    e = np.log(variance) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = e.var(-1, ddof=1, keepdims=True) - polygamma(1, freedom / 2)
    prior = 2 * _trigamma_inverse(np.maximum(excess, 1e-4))
    centre = np.exp(e.mean(-1, keepdims=True) + digamma(prior / 2) - np.log(prior / 2))
    shrunk = (prior * centre + freedom * variance) / (prior + freedom)
    return _tests(distances, shrunk, prior + freedom)


def _trigamma_inverse(x: Array) -> Array:
    y = 0.5 + 1 / x
    for _ in range(20):
        trigamma = polygamma(1, y)
        y = y + trigamma * (1 - trigamma / x) / polygamma(2, y)
    return y


def _tests(distances: Array, variance: Array, freedom: Any) -> tuple[Flags, Flags]:
    m, n = distances.shape[-2:]
    t = distances.mean(-1) / np.sqrt(variance / n)
    return t > -stdtrit(freedom, ERROR - CONTRADICT / m), -t > -stdtrit(freedom, CONTRADICT / m)


OURS, BONFERRONI = "ours", "own t, Bonferroni"
RULES: dict[str, Rule] = {
    OURS: fixed,
    BONFERRONI: bonferroni,
    "moderated (limma)": moderated,
    "pooled variance": pooled,
}


# --- draws -----------------------------------------------------------------------------------------------


def noise(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draws of mean 0 and standard deviation 1: normal, skewed (skewness 1, 2) or heavy-tailed (t, 5 df)."""
    kind, _, mirrored = kind.partition(", ")
    match kind:
        case "normal":
            drawn = rng.normal(size=shape)
        case "skewness 1":
            drawn = (rng.gamma(4.0, size=shape) - 4) / 2
        case "skewness 2":
            drawn = rng.exponential(size=shape) - 1
        case "heavy tails":
            drawn = rng.standard_t(5, size=shape) / np.sqrt(5 / 3)
        case _:
            raise ValueError(kind)
    return -drawn if mirrored else drawn


class Case(NamedTuple):
    """The means and standard deviations of the comparisons of a claim."""

    spread: str
    shared: float
    margin: str

    def draw(self, kind: str, m: int, n: int, repeats: int, rng: np.random.Generator) -> Array:
        """(repeats, m, n) differences minus margin; the largest sd is 1."""
        own, common = noise(kind, (repeats, m, n), rng), noise(kind, (repeats, 1, n), rng)
        sd = np.geomspace(0.1, 1, m) if self.spread == "tenfold" else np.ones(m)
        if self.spread == "quarter":
            sd[: m - max(1, m // 4)] = 0.1
        sd[-1] = 1
        drawn: Array = sd[:, None] * (np.sqrt(1 - self.shared) * own + np.sqrt(self.shared) * common)
        if self.margin == "one":
            drawn[:, :-1] += 100
        return drawn


def cases(m: int) -> Iterator[Case]:
    """All cases; a single comparison has one."""
    if m == 1:
        yield Case("equal", 0.0, "all")
    else:
        for spread, shared, margin in itertools.product(
            ("equal", "tenfold", "quarter"), SHARED, ("all", "one")
        ):
            yield Case(spread, shared, margin)


class Rate(NamedTuple):
    """A measured probability with its 95% interval (Wilson)."""

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f}%"


def rate(hits: int, repeats: int) -> Rate:
    """The rate of `hits` in `repeats`."""
    interval = stats.binomtest(hits, repeats).proportion_ci(method="wilson")
    return Rate(hits / repeats, float(interval.low), float(interval.high))


def wrongs(rule: Rule, kind: str, m: int, n: int, case: Case, repeats: int, rng: np.random.Generator) -> int:
    """The number of claims, among `repeats` that lie at their margin, that get a verdict."""
    found, left = 0, repeats
    while left:
        part = min(left, max(1, 1_000_000 // (m * n)))
        above, below = rule(case.draw(kind, m, n, part, rng))
        found += int((below.any(-1) | above.all(-1)).sum())
        left -= part
    return found


def worst(rule: Rule, kind: str, m: int, n: int, rng: np.random.Generator, fresh: int) -> tuple[Case, Rate]:
    """The case with the most wrong verdicts, and their rate in new draws of this case."""
    scouted = {case: wrongs(rule, kind, m, n, case, min(fresh, SCOUTING), rng) for case in cases(m)}
    case = max(scouted, key=lambda one: scouted[one])
    return case, rate(wrongs(rule, kind, m, n, case, fresh, rng), fresh)


# --- tables ----------------------------------------------------------------------------------------------


def line(*columns: object) -> None:
    print("| " + " | ".join(map(str, columns)) + " |", flush=True)


def head(*columns: object) -> None:
    print()
    line(*columns)
    line(*["---"] * len(columns))


def wrong(rng: np.random.Generator) -> Any:
    """Wrong verdicts at the margin, and of claims that are true by some amount."""
    found: list[Any] = []
    head("differences", "seeds", *(f"m = {m}" for m in COMPARISONS))
    for kind, n in itertools.product(KINDS, SEEDS):
        fresh = FRESH if kind == "normal" else FRESH // 4
        row = {m: worst(fixed, kind, m, n, rng, fresh) for m in COMPARISONS}
        line(kind, n, *(one for _, one in row.values()))
        found.append({"differences": kind, "seeds": n, "wrong": row})
    head("true by", "differences", "seeds", *(f"m = {m}" for m in COMPARISONS))
    away = []
    for by, kind, n in itertools.product((0.1, 0.5), ("normal", "skewness 1"), SEEDS):
        rates = {m: _true_by(by, kind, m, n, rng) for m in COMPARISONS}
        line(f"{by} sd", kind, n, *rates.values())
        away.append({"true by": by, "differences": kind, "seeds": n, "contradicted": rates})
    return {"at the margin": found, "true by some amount": away}


def _true_by(by: float, kind: str, m: int, n: int, rng: np.random.Generator) -> Rate:
    """How often a claim is contradicted although all comparisons are `by` sds above the margin."""
    hits, repeats = 0, 5_000
    for case in (Case("equal", shared, "all") for shared in (SHARED if m > 1 else (0.0,))):
        _, below = fixed(case.draw(kind, m, n, repeats, rng) + by)
        hits = max(hits, int(below.any(-1).sum()))
    return rate(hits, repeats)


EFFECTS = ((1.0, 0.3), (1.0, 0.6), (3.0, 0.6))


def methods(rng: np.random.Generator) -> Any:
    """For each rule, its worst rates of wrong verdicts and its rates of right ones."""
    found: list[Any] = []
    head("rule", "differences", "seeds", *(f"wrong, m = {m}" for m in COMPARISONS))
    for (name, rule), kind, n in itertools.product(RULES.items(), ("normal", "skewness 1"), SEEDS):
        row = {m: worst(rule, kind, m, n, rng, 4_000) for m in COMPARISONS}
        line(name, kind, n, *(one for _, one in row.values()))
        found.append({"rule": name, "differences": kind, "seeds": n, "wrong": row})
    head("rule", "points (sd)", "seeds", *(f"m = {m}" for m in COMPARISONS))
    for (name, rule), (effect, sd), n in itertools.product(RULES.items(), EFFECTS, SEEDS):
        right = {m: power(rule, m, n, effect, sd, rng) for m in COMPARISONS}
        words = (f"{100 * a:.0f}% / {100 * b:.0f}%" for a, b in right.values())
        line(name, f"{effect:g} ({sd:g})", n, *words)
        found.append({"rule": name, "points": effect, "sd": sd, "seeds": n, "right": right})
    return found


def power(
    rule: Rule, m: int, n: int, effect: float, sd: float, rng: np.random.Generator
) -> tuple[float, float]:
    """How often a claim is supported if all comparisons are `effect` points above the margin, and
    contradicted if one of them is as far below."""
    drawn = effect + sd * rng.normal(size=(2_000, m, n))
    above, below = rule(drawn)
    supported = (above.all(-1) & ~below.any(-1)).mean()
    drawn[:, 0] -= 2 * effect
    return float(supported), float(rule(drawn)[1].any(-1).mean())


def floor(rng: np.random.Generator) -> Any:
    """What the floor costs and gains, for claims that are false in one comparison. Sds are spread."""
    found: list[Any] = []
    head("seeds", "m", "sd of the false one", "ours", "own t, Bonferroni")
    for n, m in itertools.product((3, 5), (4, 16)):
        sd = np.geomspace(0.1, 1, m)
        for false in (0, m // 2, m - 1):
            drawn = 1 + sd[:, None] * rng.normal(size=(4_000, m, n))
            drawn[:, false] -= 2
            right = {name: float(RULES[name](drawn)[1].any(-1).mean()) for name in (OURS, BONFERRONI)}
            line(n, m, f"{sd[false]:.2f}", *(f"{100 * part:.0f}%" for part in right.values()))
            found.append({"seeds": n, "m": m, "sd": float(sd[false]), "contradicted": right})
    return found


def again(rng: np.random.Generator) -> Any:
    """Wrong verdicts at any look, if one looks after every seed from 3 to `LOOKS`."""
    found: list[Any] = []
    head("rule", "differences", *(f"m = {m}" for m in COMPARISONS))
    for name, rule, kind, fresh in (
        ("anytime", anytime, "normal", 10_000),
        ("anytime", anytime, "skewness 1", 3_000),
        ("anytime", anytime, "skewness 1, mirrored", 3_000),
        ("anytime", anytime, "heavy tails", 3_000),
        ("fixed, at every look", _peeking, "normal", 600),
    ):
        row = {m: worst(rule, kind, m, LOOKS, rng, fresh) for m in COMPARISONS}
        line(name, kind, *(one for _, one in row.values()))
        found.append({"rule": name, "differences": kind, "looks": f"3 to {LOOKS}", "wrong": row})
    head("points (sd)", "mean seeds, spending", "mixture", "decided by 5 seeds, spending", "mixture")
    for effect, sd in EFFECTS:
        drawn = effect + sd * rng.normal(size=(4_000, 1, LOOKS))
        ours = [_first(anytime(drawn[..., :n])[0][:, 0] for n in range(3, LOOKS + 1))]
        both = {"spending": ours[0], "mixture": _first(iter(_mixture(drawn[:, 0]).T[2:]))}
        means = {name: float(first.mean()) for name, first in both.items()}
        early = {name: float((first <= 5).mean()) for name, first in both.items()}
        line(
            f"{effect:g} ({sd:g})",
            *(f"{mean:.1f}" for mean in means.values()),
            *(f"{100 * share:.0f}%" for share in early.values()),
        )
        found.append({"points": effect, "sd": sd, "mean seeds": means, "decided by 5 seeds": early})
    return found


def _peeking(distances: Array) -> tuple[Flags, Flags]:
    """The fixed rule at every look. A claim that any look supports counts as above in every comparison."""
    looks = [fixed(distances[..., :n]) for n in range(3, distances.shape[-1] + 1)]
    supported = np.any([above.all(-1) for above, _ in looks], axis=0)
    below = np.any([below for _, below in looks], axis=0)
    return np.broadcast_to(supported[:, None], below.shape), below


def _first(looks: Iterator[Flags]) -> NDArray[np.int64]:
    """The first look (from 3) at which each claim is decided; `LOOKS` if there is none."""
    flags = np.array([*looks])
    return np.where(flags.any(0), flags.argmax(0) + 3, LOOKS)


def _mixture(values: Array, prior: float = 3.0) -> Flags:
    """Whether a t mixture puts the mean above 0 at each n (Lai 1976; Wang and Ramdas 2024).

    The Bayes factor of a normal effect size of standard deviation `prior`, the best of 1 to 5 here.
    """
    n = np.arange(1.0, values.shape[-1] + 1)
    mean = values.cumsum(-1) / n
    spread = (values**2).cumsum(-1) - n * mean**2
    t2 = n * mean**2 / np.maximum(spread, 1e-12)  # over the degrees of freedom
    gain = 1 + n * prior**2
    factor = -0.5 * np.log(gain) + n / 2 * np.log((1 + t2) / (1 + t2 / gain))
    decided: Flags = (factor > np.log(1 / (2 * (ERROR - CONTRADICT)))) & (mean > 0) & (n >= 3)
    return decided


MOST = 12  # seeds of a comparison in the simulation of settling


def cells(rng: np.random.Generator) -> Any:
    """What settling a claim trains, against a fixed grid of five seeds.

    Comparisons are 1 to 3 points above the margin, with a standard deviation of 0.3 to 0.6. In a false claim
    one comparison is as far below.
    """
    found = []
    head("claim", "m", "cells, of five seeds'", "settled", "wrong", "five seeds: settled", "wrong")
    for truth, m in itertools.product((True, False), (1, 4, 16)):
        runs = 600 if m < 16 else 200
        outcome = np.array([_settled(truth, m, rng) for _ in range(runs)])
        share, settled, bad, grid, grid_bad = outcome.mean(0)
        line(
            "true" if truth else "false in one", m, f"{100 * share:.0f}%",
            *(f"{100 * part:.1f}%" for part in (settled, bad, grid, grid_bad)),
        )  # fmt: skip
        names = ("cells", "settled", "wrong", "five seeds settled", "five seeds wrong")
        found.append({"true": truth, "m": m} | dict(zip(names, map(float, outcome.mean(0)), strict=True)))
    return found


def _settled(truth: bool, m: int, rng: np.random.Generator) -> tuple[float, bool, bool, bool, bool]:
    """For one claim: the share of the cells of five seeds, whether it is settled and whether wrongly, and the
    same for the grid."""
    effect, sd = rng.uniform(1, 3, size=(m, 1)), rng.uniform(0.3, 0.6, size=(m, 1))
    if not truth:
        effect[rng.integers(m)] *= -1
    future = effect + sd * rng.normal(size=(m, MOST))
    trained, verdict = _trained(future)
    grid = judge([*future[:, :5]], [0.0] * m)
    bad = CONTRADICTED if truth else SUPPORTED
    return (
        trained / (5 * m),
        verdict != OPEN, verdict == bad, grid.verdict != OPEN, grid.verdict == bad,
    )  # fmt: skip


def _trained(future: Array, budget: float = np.inf, futile: float = 0.0) -> tuple[int, str]:
    """The cells that settling trains, and the verdict. `future` has the differences minus margin, (m, seeds).

    A claim is given up if the planner's probability of deciding it within `budget` cells is below `futile`.
    """
    m, most = future.shape
    margins, counts = [0.0] * m, [0] * m
    while True:
        values = [own[:count].tolist() for own, count in zip(future, counts, strict=True)]
        judged = judge(values, margins, anytime=True)
        goals = [min(most, goal) for goal in plan.targets(values, margins, judged)]
        if judged.verdict != OPEN or goals == counts or sum(goals) > budget:
            return sum(counts), judged.verdict
        if futile:

            def goals_of(group: Sequence[int], counts: list[int] = counts) -> list[int]:
                further = int((budget - sum(counts)) // len(group))
                return [min(most, n + further) if i in group else n for i, n in enumerate(counts)]

            hope = plan.hope(values, margins, judged, goals_of)
            if hope is not None and hope < futile:
                return sum(counts), OPEN
        counts = goals


def futility(rng: np.random.Generator) -> Any:
    """What giving up saves and loses, for claims with the budget of a fixed grid. Some of them are hopeless.

    The same simulated futures with and without giving up. At the margin every verdict is wrong.
    """
    found = []
    head("claim", "seeds paid for", "m", "cells of the budget, with", "without", "settled, with", "without",
         "wrong, with", "without")  # fmt: skip
    for (name, effect), seeds, m in itertools.product(
        (("at its margins", 0.0), ("true by 0.5 sd", 0.5), ("true by 1.5 sd", 1.5)), (8, 16), (1, 4, 16)
    ):
        outcome = []
        for _ in range(300 if m < 16 else 100):
            future = effect + rng.normal(size=(m, plan.MOST_SEEDS))
            row = [_trained(future, m * seeds, limit) for limit in (plan.FUTILE, 0.0)]
            wrong_ = SUPPORTED if not effect else CONTRADICTED
            outcome.append(
                [cells / (m * seeds) for cells, _ in row]
                + [verdict != OPEN for _, verdict in row]
                + [verdict == wrong_ or (not effect and verdict != OPEN) for _, verdict in row]
            )
        means = np.array(outcome, float).mean(0)
        line(name, seeds, m, *(f"{100 * part:.1f}%" for part in means))
        names = ("cells", "cells without", "settled", "settled without", "wrong", "wrong without")
        found.append(
            {"claim": name, "seeds": seeds, "m": m} | dict(zip(names, map(float, means), strict=True))
        )
    return found


STEPS, PLACES = (0.25, 0.5, 1.0, 2.0), (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def steps(rng: np.random.Generator) -> Any:
    """Wrong verdicts of one comparison if accuracies are multiples of a step and the margin lies between two.

    Then the same for normal differences if some comparisons have fewer seeds than the others.
    """
    found: list[Any] = []
    head("step (sd)", *(f"{n} seeds" for n in SEEDS))
    for step in STEPS:
        row = {n: max(_stepped(step, place, n, rng) for place in PLACES) for n in SEEDS}
        line(step, *row.values())
        found.append({"step": step, "wrong": row})
    head("seeds", *(f"m = {m}" for m in COMPARISONS[1:]))
    for few, many in itertools.product((3, 5), (10, 20)):
        row = {m: worst(_fewer(few), "normal", m, many, rng, 10_000)[1] for m in COMPARISONS[1:]}
        line(f"{few} and {many}", *row.values())
        found.append({"seeds": [few, many], "wrong": row})
    return found


def _stepped(step: float, place: float, n: int, rng: np.random.Generator) -> Rate:
    drawn = np.round(rng.normal(size=(20_000, 1, n)) / step + place) * step - place * step
    above, below = fixed(drawn)
    return rate(int((above | below).sum()), len(drawn))


def _fewer(few: int) -> Rule:
    """The fixed rule, with `few` seeds for every other comparison."""

    def rule(distances: Array) -> tuple[Flags, Flags]:
        distances[:, ::2, few:] = np.nan
        return fixed(distances)

    return rule


PARTS = {
    "steps": steps,
    "wrong": wrong,
    "methods": methods,
    "floor": floor,
    "anytime": again,
    "cells": cells,
    "futility": futility,
}


def main() -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = {name: part for name, part in kept.items() if name in PARTS}
    for name in sys.argv[1:] or PARTS:
        began = time.monotonic()
        kept[name] = PARTS[name](np.random.default_rng(0))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
