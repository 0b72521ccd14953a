"""Random numbers that are the same on every machine and with every library version.

A stream is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
a counter-based generator: block number c of key K is a fixed function of (c, K). The key is the
first 128 bits, little-endian, of SHA-256 over the seed and the purpose, joined by "/". Blocks start
at counter 1 and have four 64-bit words each. All functions below are defined on these words, not on the
sampling routines of a library, whose results may change between releases. Only `normals` depends on the
platform (its log, cos and sin): two machines may differ there in the last bit.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Stream = np.random.Philox


def stream(seed: int, *purpose: str | int) -> Stream:
    """The stream of `seed` for one purpose, for example ``stream(0, "weights", "convs.0.weight")``.

    Streams with different seeds or purposes are independent, so adding a layer changes no other layer.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def words(source: Stream, n: int) -> NDArray[np.uint64]:
    """The next n 64-bit words, shape (n,)."""
    return np.asarray(source.random_raw(n), dtype=np.uint64).reshape(n)


def halves(source: Stream, n: int) -> NDArray[np.uint32]:
    """The next n 32-bit words, shape (n,): each 64-bit word gives its low half, then its high half."""
    return words(source, (n + 1) // 2).astype("<u8").view("<u4")[:n]


def uniforms(source: Stream, n: int) -> NDArray[np.float32]:
    """n float32 in [0, 1), shape (n,): the upper 24 bits of a 32-bit word times 2^-24, without rounding."""
    return (halves(source, n) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def signs(source: Stream, n: int) -> NDArray[np.float32]:
    """n float32, -1 or +1 with equal probability, shape (n,). A set bit gives -1; lowest bit first."""
    bits = np.unpackbits(words(source, (n + 63) // 64).astype("<u8").view(np.uint8), bitorder="little")[:n]
    return 1 - 2 * bits.astype(np.float32)


def normals(source: Stream, n: int) -> NDArray[np.float32]:
    """n float32 from N(0, 1), shape (n,), by Box and Muller's transform in float64.

    Let u be the upper 53 bits of a word times 2^-53. The first half of the words gives the radii, from
    1 - u so that log is never called with zero; the second half gives the angles. The values with cosine
    fill the first half of the result, those with sine the second.
    """
    pairs = (n + 1) // 2
    u = (words(source, 2 * pairs) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - u[:pairs])), 2.0 * np.pi * u[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].astype(np.float32)


def permutation(source: Stream, n: int) -> NDArray[np.int64]:
    """A random order of 0..n-1, shape (n,): the positions that a stable sort of n words gives."""
    return np.argsort(words(source, n), kind="stable")
