"""How often a claim gets a wrong verdict, and how often a right one: simulated differences through `judge`.

    python -m benchmarks.claims

At the margin every verdict but "not enough data" is wrong. Standard deviations differ tenfold between the
comparisons, and seeds are shared (correlation 0, 0.5, 0.9): the worst of these cases is shown.
"""

import itertools
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hiddenweights.analysis.aggregate import describe
from hiddenweights.analysis.claims import NOT_ENOUGH, SUPPORTED, Effect, judge

REPEATS = 2_000
SEEDS, COMPARISONS, SHARED = (3, 5, 10), (1, 4, 16, 40), (0.0, 0.5, 0.9)
RESULTS = Path(__file__).parent / "results" / "claims.json"
Array = NDArray[np.float64]


def noise(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draws of mean 0 and standard deviation 1: normal, skewed (skewness 1, 2) or heavy-tailed (t, 5 df)."""
    match kind:
        case "normal":
            return rng.normal(size=shape)
        case "skewness 1":
            return (rng.gamma(4.0, size=shape) - 4) / 2
        case "skewness 2":
            return rng.exponential(size=shape) - 1
        case "heavy tails":
            return rng.standard_t(5, size=shape) / np.sqrt(5 / 3)
    raise ValueError(kind)


def differences(kind: str, m: int, n: int, shared: float, rng: np.random.Generator) -> Array:
    """(m, n) differences of mean 0, sd from 0.1 to 1 over the m, correlated by seed."""
    own, common = noise(kind, (m, n), rng), noise(kind, (1, n), rng)
    spread = np.geomspace(0.1, 1, m)[:, None] if m > 1 else np.ones((1, 1))
    return spread * (np.sqrt(1 - shared) * own + np.sqrt(shared) * common)


def verdict(values: Array) -> str:
    """What `judge` says of (m, n) differences whose margin is 0."""
    effects = []
    for row in values:
        d = describe(row)
        effects.append(Effect("", d["mean"], d["sd"], len(row), d["low"], d["high"], 0.0, ()))
    return judge(effects)


def wrong(kind: str, m: int, n: int, sign: float, rng: np.random.Generator) -> float:
    """The worst rate of wrong verdicts: all means at the margin, or only that of the largest sd."""
    rates = []
    for shared, one in itertools.product(SHARED if m > 1 else (0.0,), (False, True) if m > 1 else (False,)):
        shift = np.zeros((m, 1))
        if one:
            shift[:-1] = 100.0
        wrongs = sum(
            verdict(sign * differences(kind, m, n, shared, rng) + shift) != NOT_ENOUGH for _ in range(REPEATS)
        )
        rates.append(wrongs / REPEATS)
    return max(rates)


def power(m: int, n: int, effect: float, sd: float, rng: np.random.Generator) -> float:
    """How often a claim whose m differences are all `effect` points, of one sd, is supported."""
    hits = sum(verdict(effect + sd * rng.normal(size=(m, n))) == SUPPORTED for _ in range(500))
    return hits / 500


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    print(
        "| differences | seeds | "
        + " | ".join(f"m = {m}" for m in COMPARISONS)
        + " |\n|---|---|"
        + "---|" * 4
    )
    for kind, sign in (
        ("normal", 1),
        ("skewness 1", 1),
        ("skewness 1", -1),
        ("skewness 2", -1),
        ("heavy tails", 1),
    ):
        for n in SEEDS:
            rates = [wrong(kind, m, n, sign, rng) for m in COMPARISONS]
            name = f"{kind}, mirrored" if sign < 0 else kind
            print(f"| {name} | {n} | " + " | ".join(f"{100 * r:.1f}%" for r in rates) + " |", flush=True)
            rows.append(
                {"differences": name, "seeds": n, "wrong": dict(zip(COMPARISONS, rates, strict=True))}
            )
    print(
        "\n| points (sd) | seeds | "
        + " | ".join(f"m = {m}" for m in COMPARISONS)
        + " |\n|---|---|"
        + "---|" * 4
    )
    powers = []
    for (effect, sd), n in itertools.product(((1, 0.3), (1, 0.6), (3, 0.6)), SEEDS):
        found = [power(m, n, effect, sd, rng) for m in COMPARISONS]
        print(f"| {effect} ({sd}) | {n} | " + " | ".join(f"{100 * p:.0f}%" for p in found) + " |", flush=True)
        powers.append(
            {"effect": effect, "sd": sd, "seeds": n, "power": dict(zip(COMPARISONS, found, strict=True))}
        )
    RESULTS.write_text(json.dumps({"repeats": REPEATS, "wrong": rows, "power": powers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
