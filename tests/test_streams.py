"""Random streams: Philox's published answers, our own values pinned, and the statistics of each draw."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiddenweights.masking.rng import halves, normals, permutation, signs, stream, uniforms, words

M = 2**64 - 1

# Random123's known-answer file, philox4x64-10: counter, key, output; lowest word first.
KNOWN_ANSWERS = [
    (
        [0, 0, 0, 0],
        [0, 0],
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
    ),
    (
        [M, M, M, M],
        [M, M],
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]

# stream(0, "weights", "0.weight")
PINNED_WORDS = ["0x3f5ed9dfc9862550", "0x93181f495be8880a"]
PINNED_HALVES = [1063180767, 1541965834]
PINNED_UNIFORMS = [0.7872031331062317, 0.24754101037979126, 0.35901689529418945]
PINNED_SIGNS = [1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0]
PINNED_NORMALS = [0.361628919839859, 0.10010553896427155, -0.6618475914001465, 1.3035979270935059]
PINNED_PERMUTATION = [7, 9, 6, 5, 8, 3, 0, 1, 2, 4]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 from its paper, in Python's integers."""
    c, k = [*counter], [*key]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & M, (first >> 64) ^ c[3] ^ k[1], first & M]
        k = [(k[0] + 0x9E3779B97F4A7C15) & M, (k[1] + 0xBB67AE8584CAA73B) & M]
    return c


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    assert philox(counter, key) == answer
    # numpy's generator counts up before each block.
    before = (sum(word << (64 * i) for i, word in enumerate(counter)) - 1) % 2**256
    start = np.array([(before >> (64 * i)) & M for i in range(4)], np.uint64)
    source = np.random.Philox(counter=start, key=np.array(key, np.uint64))
    assert words(source, 4).tolist() == answer


@given(st.integers(0, 2**32), st.text(max_size=20), st.integers(0, 10))
def test_a_stream_is_philox_of_the_hashed_purpose_from_counter_one(seed, name, step):
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    expected = philox([1, 0, 0, 0], key) + philox([2, 0, 0, 0], key)
    assert words(stream(seed, name, step), 8).tolist() == expected


def test_pinned_values():
    """Every result in every store rests on these: they must never change."""

    def source() -> np.random.Philox:
        return stream(0, "weights", "0.weight")

    assert [hex(word) for word in words(source(), 2)] == PINNED_WORDS
    assert halves(source(), 3).tolist() == [int(PINNED_WORDS[0], 16) & 0xFFFFFFFF, *PINNED_HALVES]
    assert uniforms(source(), 3).tolist() == PINNED_UNIFORMS
    assert signs(source(), 8).tolist() == PINNED_SIGNS
    assert normals(source(), 4) == pytest.approx(PINNED_NORMALS, rel=1e-6)
    assert permutation(source(), 10).tolist() == PINNED_PERMUTATION


@pytest.mark.parametrize("draw", [words, halves, uniforms, signs, normals, permutation])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 1000])
def test_draws_have_the_asked_length_and_depend_on_seed_and_purpose_alone(draw, n):
    first = draw(stream(3, "a"), n)
    assert first.shape == (n,)
    assert np.array_equal(first, draw(stream(3, "a"), n))
    if n == 1000:
        for other in (stream(4, "a"), stream(3, "b"), stream(3, "a", 0)):
            assert not np.array_equal(first, draw(other, n))


def test_uniforms_are_uniform_and_below_one():
    u = uniforms(stream(0, "u"), 1_000_000)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12e6))
    counts = np.histogram(u, 100, (0, 1))[0]
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 160  # chi-square, 99 degrees: above it 1 in 10,000


def test_signs_are_fair_and_independent():
    s = signs(stream(0, "s"), 1_000_000)
    assert set(s.tolist()) == {-1.0, 1.0}
    for lag in (1, 8, 64):
        assert abs((s[lag:] * s[:-lag]).mean()) < 4e-3
    assert abs(s.mean()) < 4e-3


def test_normals_have_the_moments_and_tails_of_the_normal_distribution():
    z = normals(stream(0, "z"), 1_000_000).astype(np.float64)
    assert z.mean() == pytest.approx(0, abs=4e-3)
    assert z.std() == pytest.approx(1, abs=3e-3)
    assert (z**3).mean() == pytest.approx(0, abs=2e-2)
    assert (z**4).mean() == pytest.approx(3, abs=5e-2)
    for bound, share in ((1, 0.317311), (2, 0.0455), (3, 0.0027)):
        assert (np.abs(z) > bound).mean() == pytest.approx(share, abs=4 * np.sqrt(share / 1e6))


@given(st.integers(0, 1000), st.integers(0, 500))
def test_a_permutation_permutes(seed, n):
    assert sorted(permutation(stream(seed, "p"), n).tolist()) == list(range(n))
