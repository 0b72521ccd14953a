"""The tests that decide a claim: every comparison against its margin. Pure numbers.

A claim says that all of its m comparisons are above their margins. Two kinds of test decide it:

- *contradicted*: some comparison lies below its margin, each by a one-sided t test at level
  ``CONTRADICT / m**power(n)``, in which no standard deviation counts as less than `FLOOR` times the root
  mean square of all of the claim's (one-sided moderation: Tusher, Tibshirani and Chu 2001; Smyth 2004).
- *supported*: every comparison is above its margin, each by a one-sided t test at the remaining level:
  `ERROR` minus that of the other test. This needs no correction for the number of comparisons, because all
  tests must agree (intersection-union: Berger 1982).

A t test at a small level depends on the far tail of t. At small n this tail comes from values that are
close together by chance, and skewed differences do the most harm there. The floor cuts it off, so a
correction smaller than Bonferroni's (``power = 1``) suffices. The exponents are a little above the smallest
ones for which the worst case of benchmarks/claims.py stays at `CONTRADICT`. The two levels add up to less
than 5%.

Values that are all equal have no spread to test with, so they decide nothing. With a small test set they are
frequent: accuracies are multiples of 1 / (number of test images), and a few of them often coincide.

`anytime` verdicts may be looked at after every seed, without limit. Look n (at the first n seeds) uses the
share ``SPENT / (n (n - 1))`` of both levels, and a decision stays (alpha spending: Lan and DeMets 1983),
unless it depends on the floor and later seeds of other comparisons raise that.
The shares add up to 1.6. All looks share their first seeds, so together they err less often than the sum
suggests; the benchmark measures how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

ERROR = 0.047  # for a comparison at its margin, both tests together
CONTRADICT = 0.012  # for a claim with all comparisons at their margins
FLOOR = 0.5
SPENT = 3.2
MIN_PAIRS = 3
EQUAL = 1e-6  # points; no finite test set tells apart what differs by less

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not enough data"
# The same outcomes for cells that are not like the paper's. They say nothing about the paper.
HERE = {SUPPORTED: "holds here", CONTRADICTED: "does not hold here", OPEN: "open here"}

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def outcomes(distances: Array, *, anytime: bool) -> tuple[Flags, Flags]:
    """Whether the tests put each comparison above and below its margin: two arrays of shape (..., m).

    `distances` has shape (..., m, n): differences minus margin, with pairs in the order of their seeds and
    NaN after the last pair. With `anytime` every look at 3, 4, ... n seeds counts, else only the last one.
    """
    looks, mean, sd, rms = _running(distances)
    m, n = distances.shape[-2:]
    counted = ~np.isnan(distances) & (looks >= MIN_PAIRS)
    if not anytime:
        last = (~np.isnan(distances)).sum(-1, keepdims=True)
        counted &= looks == last
        rms = rms[..., -1:]  # over all values
    share = SPENT / (looks * np.maximum(looks - 1, 1)) if anytime else np.ones(n)
    freedom = np.maximum(looks - 1, 1)
    floored = np.maximum(sd, FLOOR * rms)
    with np.errstate(invalid="ignore"):
        scaled = mean * np.sqrt(looks)
        contradict = CONTRADICT / m ** power(looks)
        above = (sd > EQUAL) & (scaled > -stdtrit(freedom, (ERROR - contradict) * share) * sd)
        below = (floored > EQUAL) & (-scaled > -stdtrit(freedom, contradict * share) * floored)
    return (above & counted).any(-1), (below & counted).any(-1)


def power(n: Array) -> Array:
    """The exponent of m in the correction of the test for "contradicted" at n seeds."""
    return np.minimum(1.0, 0.17 * n - 0.09)


def _running(distances: Array) -> tuple[Array, Array, Array, Array]:
    """Looks (n,); mean and sd of the first n pairs (..., m, n); root mean square sd of all (..., 1, n)."""
    looks = np.arange(1.0, distances.shape[-1] + 1)
    origin = distances[..., :1]
    centred = distances - origin
    first = centred.cumsum(-1) / looks
    spread = np.maximum((centred**2).cumsum(-1) - looks * first**2, 0.0) / np.maximum(looks - 1, 1)
    # A comparison without further seeds keeps the spread of its last seeds.
    have = (~np.isnan(distances)).sum(-1, keepdims=True)
    latest = np.minimum(looks, np.maximum(have, 1)).astype(int) - 1
    filled = np.take_along_axis(spread, np.broadcast_to(latest, spread.shape), -1)
    spreads = np.where(have > 1, filled, 0.0).sum(-2, keepdims=True)
    rms = np.sqrt(spreads / np.maximum((have > 1).sum(-2, keepdims=True), 1))
    return looks, first + origin, np.sqrt(spread), rms


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a claim, and whether each comparison is decided."""

    verdict: str
    above: tuple[bool, ...]
    below: tuple[bool, ...]

    @property
    def open(self) -> tuple[bool, ...]:
        """Whether each comparison is undecided."""
        return tuple(not (above or below) for above, below in zip(self.above, self.below, strict=True))


def judge(values: Sequence[Sequence[float]], margins: Sequence[float], *, anytime: bool = False) -> Judgement:
    """The verdict on a claim, from the values of its comparisons (points, in the order of their seeds)."""
    if not values:
        return Judgement(OPEN, (), ())
    above, below = outcomes(padded(values, margins), anytime=anytime)
    verdict = CONTRADICTED if below.any() else SUPPORTED if above.all() else OPEN
    return Judgement(verdict, tuple(map(bool, above)), tuple(map(bool, below)))


def padded(values: Sequence[Sequence[float]], margins: Sequence[float]) -> Array:
    """Values minus margins as one array of shape (m, n), with NaN after the last value of a comparison."""
    distances = np.full((len(values), max([1, *map(len, values)])), np.nan)
    for row, own, margin in zip(distances, values, margins, strict=True):
        row[: len(own)] = np.asarray(own, float) - margin
    return distances


def share(look: int) -> float:
    """The share of the levels that an anytime verdict may use at the look at the first `look` seeds."""
    return SPENT / (look * (look - 1))
