"""The overlap of two masks, compared with the overlap of random masks."""

import math
from dataclasses import dataclass

import numpy as np

from hiddenweights.tickets.rice import Bits


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two masks of `n` weights that keep `a` and `b` of them, `both` in common."""

    n: int
    a: int
    b: int
    both: int
    low: float
    """Lower end of the central 95% of `both` if the second mask were random with the same `b`."""
    high: float

    @property
    def verdict(self) -> str:
        """Whether `both` is above, within or below the central 95% of random masks."""
        return "above" if self.both > self.high else "below" if self.both < self.low else "within"


def overlap(a: Bits, b: Bits) -> Overlap:
    """The overlap of two bool masks of the same shape. The interval is exact (hypergeometric)."""
    n, kept_a, kept_b = a.size, int(a.sum()), int(b.sum())
    return Overlap(n, kept_a, kept_b, int((a & b).sum()), *chance_interval(n, kept_a, kept_b))


def total(layers: list[Overlap]) -> Overlap:
    """All layers together, drawn independently. The interval is that of a normal distribution."""
    mean = sum(layer.a * layer.b / layer.n for layer in layers)
    spread = 1.96 * math.sqrt(sum(_variance(layer.n, layer.a, layer.b) for layer in layers))
    n, a, b, both = (sum(getattr(layer, name) for layer in layers) for name in ("n", "a", "b", "both"))
    return Overlap(n, a, b, both, mean - spread, mean + spread)


def chance_interval(n: int, a: int, b: int) -> tuple[int, int]:
    """The 2.5% and 97.5% quantiles of the overlap when b of n are drawn at random and a are marked.

    Computed from the ratios p(x+1)/p(x) = (a-x)(b-x) / ((x+1)(n-a-b+x+1)) over the part of the support
    within 12 standard deviations of the mean. The probability of the rest is below 1e-16.
    """
    mean, reach = a * b / n, 12 * math.sqrt(_variance(n, a, b)) + 30
    least = max(0, a + b - n, math.floor(mean - reach))
    most = min(a, b, math.ceil(mean + reach))
    x = np.arange(least, most, dtype=np.float64)
    ratios = np.log((a - x) * (b - x)) - np.log((x + 1) * (n - a - b + x + 1))
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    cumulative = np.cumsum(np.exp(logs - logs.max()))
    low, high = np.searchsorted(cumulative / cumulative[-1], [0.025, 0.975])
    return least + int(low), least + int(high)


def _variance(n: int, a: int, b: int) -> float:
    return a * b * (n - a) * (n - b) / (n * n * (n - 1)) if n > 1 else 0.0
