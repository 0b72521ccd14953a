"""Overlaps of masks against chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from hiddenweights.tickets.overlap import chance_interval, overlap, total


@given(st.integers(1, 3000), st.data())
def test_the_interval_is_that_of_the_hypergeometric_distribution(n, data):
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    chance = hypergeom(n, a, b)
    low, high = chance_interval(n, a, b)
    assert chance.cdf(low) >= 0.025 - 1e-9
    assert chance.cdf(low - 1) <= 0.025 + 1e-9
    assert chance.cdf(high) >= 0.975 - 1e-9
    assert chance.cdf(high - 1) <= 0.975 + 1e-9


def test_millions_of_weights_are_no_matter():
    low, high = chance_interval(10_000_000, 5_000_000, 3_000_000)
    spread = 1.96 * (1.5e6 * 0.5 * 0.7) ** 0.5
    assert (low, high) == (pytest.approx(1.5e6 - spread, abs=3), pytest.approx(1.5e6 + spread, abs=3))


def test_random_masks_lie_within_chance_and_equal_ones_above():
    bits = np.random.default_rng(0)
    pairs = [[bits.random((50, 40)) < k for k in (0.3, 0.5)] for _ in range(200)]
    found = [overlap(a, b) for a, b in pairs]
    within = sum(o.verdict == "within" for o in found)
    assert 180 <= within < 200  # 95% of them, and not by an interval that is always wide enough
    assert total(found).verdict == "within"
    a, b = pairs[0]
    assert overlap(a, a).verdict == "above"
    assert overlap(a, ~a).verdict == "below"
    assert total([overlap(a, a), overlap(b, b)]).verdict == "above"
    assert overlap(a, b).both == int((a & b).sum())
