"""Whether differences decide a claim: tests of every comparison against its margin. Pure numbers.

A claim says that all of its m comparisons lie above their margins. Two kinds of test decide it:

- *contradicted*: some comparison lies below its margin, each by a one-sided t test at level
  ``CONTRADICT / m**power(n)``, in which no standard deviation counts as less than `FLOOR` times the root
  mean square of all of the claim's (one-sided moderation: Tusher, Tibshirani and Chu 2001; Smyth 2004).
- *supported*: every comparison lies above its margin, each by a one-sided t test at the level that is left:
  `ERROR` less that of the other test. All of them must agree, which needs no correction for their number
  (intersection-union: Berger 1982).

A t test at a small level looks far into the tail of t. At small n that tail is made by values which lie close
together by chance, and it is there that skewed differences do the most harm. The floor cuts it off, so that m
need not be paid for in full (Bonferroni is ``power = 1``). The exponents lie a little above the least with
which the worst case of benchmarks/claims.py stays at `CONTRADICT`. The two levels add up to less than 5%.

`anytime` verdicts may be looked at after every seed, without end: look n (at the first n seeds) has the
share ``SPENT / (n (n - 1))`` of both levels, and what a look has decided stays decided (alpha spending: Lan
and DeMets 1983). The shares add up to 1.6. All looks share their first seeds, so that together they err less
often than the sum says; the benchmark measures how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

ERROR = 0.047  # of a comparison at its margin, both tests together
CONTRADICT = 0.012  # of a claim with all comparisons at their margins
FLOOR = 0.5
SPENT = 3.2
MIN_PAIRS = 3

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not enough data"
# The same outcomes in a setting that is not the paper's, which say nothing about the paper.
HERE = {SUPPORTED: "holds here", CONTRADICTED: "does not hold here", OPEN: "open here"}

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def outcomes(distances: Array, *, anytime: bool) -> tuple[Flags, Flags]:
    """For each comparison, whether its tests put it above and below its margin: two arrays of shape (..., m).

    `distances` has shape (..., m, n): differences minus margin, the pairs in the order of their seeds, NaN
    after a comparison's last pair. With `anytime` every look at 3, 4, ... n seeds counts, else only the last.
    """
    looks, mean, sd, rms = _running(distances)
    m, n = distances.shape[-2:]
    counted = ~np.isnan(distances) & (looks >= MIN_PAIRS)
    if not anytime:
        last = (~np.isnan(distances)).sum(-1, keepdims=True)
        counted &= looks == last
        rms = rms[..., -1:]  # of all values that there are
    share = SPENT / (looks * np.maximum(looks - 1, 1)) if anytime else np.ones(n)
    freedom = np.maximum(looks - 1, 1)
    with np.errstate(invalid="ignore"):
        scaled = mean * np.sqrt(looks)
        contradict = CONTRADICT / m ** power(looks)
        above = scaled > -stdtrit(freedom, (ERROR - contradict) * share) * sd
        below = -scaled > -stdtrit(freedom, contradict * share) * np.maximum(sd, FLOOR * rms)
    return (above & counted).any(-1), (below & counted).any(-1)


def power(n: Array) -> Array:
    """The part of m comparisons that "some of them" pays for at n seeds, as an exponent of m."""
    return np.minimum(1.0, 0.17 * n - 0.09)


def _running(distances: Array) -> tuple[Array, Array, Array, Array]:
    """Looks (n,); mean and sd of the first n pairs (..., m, n); root mean square sd of all (..., 1, n)."""
    looks = np.arange(1.0, distances.shape[-1] + 1)
    origin = distances[..., :1]
    centred = distances - origin
    first = centred.cumsum(-1) / looks
    spread = np.maximum((centred**2).cumsum(-1) - looks * first**2, 0.0) / np.maximum(looks - 1, 1)
    # A comparison without further seeds counts with the spread of those it has.
    have = (~np.isnan(distances)).sum(-1, keepdims=True)
    latest = np.minimum(looks, np.maximum(have, 1)).astype(int) - 1
    filled = np.take_along_axis(spread, np.broadcast_to(latest, spread.shape), -1)
    spreads = np.where(have > 1, filled, 0.0).sum(-2, keepdims=True)
    rms = np.sqrt(spreads / np.maximum((have > 1).sum(-2, keepdims=True), 1))
    return looks, first + origin, np.sqrt(spread), rms


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a claim, and for each comparison whether it is decided."""

    verdict: str
    above: tuple[bool, ...]
    below: tuple[bool, ...]

    @property
    def open(self) -> tuple[bool, ...]:
        """For each comparison, whether it is undecided."""
        return tuple(not (above or below) for above, below in zip(self.above, self.below, strict=True))


def judge(values: Sequence[Sequence[float]], margins: Sequence[float], *, anytime: bool = False) -> Judgement:
    """The verdict on a claim whose comparisons have these values (points), in the order of their seeds."""
    if not values:
        return Judgement(OPEN, (), ())
    above, below = outcomes(padded(values, margins), anytime=anytime)
    verdict = CONTRADICTED if below.any() else SUPPORTED if above.all() else OPEN
    return Judgement(verdict, tuple(map(bool, above)), tuple(map(bool, below)))


def padded(values: Sequence[Sequence[float]], margins: Sequence[float]) -> Array:
    """Values minus margins as one array of shape (m, n), NaN after a comparison's last value."""
    distances = np.full((len(values), max([1, *map(len, values)])), np.nan)
    for row, own, margin in zip(distances, values, margins, strict=True):
        row[: len(own)] = np.asarray(own, float) - margin
    return distances


def share(look: int) -> float:
    """The part of an anytime verdict's levels that its look at the first `look` seeds may use."""
    return SPENT / (look * (look - 1))
