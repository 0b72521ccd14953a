"""The masks' code: exact both ways, near the entropy, and no bytes that harm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiddenweights.tickets.rice import decode_mask, encode_mask


@given(st.lists(st.booleans(), max_size=300))
def test_a_mask_comes_back_exactly(bits):
    mask = np.array(bits, np.bool_)
    code, r = encode_mask(mask)
    assert np.array_equal(decode_mask(code, len(mask), int(mask.sum()), r), mask)


@pytest.mark.parametrize("k", [0.0, 0.001, 0.05, 0.1, 0.2, 0.3, 0.382, 0.4, 0.5, 0.6, 0.7, 0.9, 0.99, 1.0])
def test_independent_bits_cost_little_more_than_their_entropy(k):
    n = 300_000
    mask = np.random.default_rng(0).permutation(n) < round(k * n)
    code, r = encode_mask(mask)
    entropy = -sum(p * math.log2(p) for p in (k, 1 - k) if p)
    assert 8 * len(code) <= 1.045 * entropy * n + 8
    assert np.array_equal(decode_mask(code, n, round(k * n), r), mask)


def test_the_code_is_the_documented_one():
    """Positions 2 and 9 of 12: gaps 2 and 6; at r = 1 low bits 0, 0, then 1 and 3 zeros before a one."""
    mask = np.zeros(12, np.bool_)
    mask[[2, 9]] = True
    assert decode_mask(bytes([0b00_01_0001]), 12, 2, 1).tolist() == mask.tolist()
    half = np.array([1, 0, 0, 1, 1, 0], np.bool_)
    assert encode_mask(half) == (bytes([0b10011000]), 0)  # r = 0: the bits themselves


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(-1, 201), st.integers(-1, 70))
def test_any_bytes_give_a_mask_as_asked_for_or_a_value_error(code, n, kept, r):
    try:
        mask = decode_mask(code, n, kept, r)
    except ValueError:
        return
    assert mask.shape == (n,)
    assert mask.sum() == kept


@given(st.binary(max_size=30), st.integers(0, 2**30))
def test_gaps_beyond_the_mask_never_wrap_around(code, kept):
    with pytest.raises(ValueError, match="mask"):
        decode_mask(code + b"\x00" * 9 + b"\x01", 1000, min(kept, 1000), 10)
