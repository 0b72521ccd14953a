"""`keep_largest` on an NVIDIA GPU: a radix selection, then one pass that writes the masked weight.

A key is a magnitude's 31 bits followed by the element's place counted from the end, so that no two keys are
equal and the `kept` largest keys are exactly what is kept. From the top digit down, a pass counts the digits
of the elements that agree with the threshold so far; the next pass reads off the counts which digit the
threshold has. The passes over the places return at once unless magnitudes tie at the threshold. Nothing is
read by the CPU and every shape is fixed, so that a CUDA graph can hold it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, no-any-return, import-untyped"
# Triton's kernels have types of their own.

import torch
import triton
import triton.language as tl
from torch import Tensor

_BITS = 11
_BINS = tl.constexpr(1 << _BITS)
_MAGNITUDE_SHIFTS = (20, 10, 0)  # digits of 11, 10 and 10 bits
_BLOCK, _PROGRAMS = 4096, 264  # two for each of the 132 multiprocessors of an H100
_SHAPE = {"block": _BLOCK, "num_warps": 8}


def supports(values: Tensor, scores: Tensor) -> bool:
    """Whether the kernels take these tensors: float32 scores, both in one dense memory format."""
    layout = _layout(scores)
    return (
        scores.dtype == torch.float32
        and scores.numel() < 2**31
        and layout is not None
        and layout == _layout(values)
    )


def keep_largest(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    """As `hiddenweights.masking.topk.keep_largest`, for tensors that it `supports`."""
    layout, n = _layout(scores), scores.numel()
    assert layout is not None
    channels, pixels = layout
    last = n - 1
    place_shifts = range(_BITS * (max(0, last.bit_length() - 1) // _BITS), -1, -_BITS)
    passes = len(_MAGNITUDE_SHIFTS) + len(place_shifts)
    counts = torch.zeros(passes, 1 << _BITS, dtype=torch.int32, device=scores.device)
    state = torch.empty(passes + 1, 3, dtype=torch.int32, device=scores.device)
    result = torch.empty_like(values, dtype=dtype)
    grid = (min(triton.cdiv(n, _BLOCK), _PROGRAMS),)
    for number, shift in enumerate(_MAGNITUDE_SHIFTS):
        _count_magnitudes[grid](scores, counts, state, n, kept, shift, number=number, **_SHAPE)
    first = len(_MAGNITUDE_SHIFTS)
    for number, shift in enumerate(place_shifts, start=first):
        _count_places[grid](
            scores, counts, state, n, channels, pixels, last, shift,
            number=number, first=first, **_SHAPE,
        )  # fmt: skip
    _write[(triton.cdiv(n, _BLOCK),)](
        values, scores, result, counts, state, n, channels, pixels, last,
        number=passes, first=first, **_SHAPE,
    )  # fmt: skip
    return result


def _layout(x: Tensor) -> tuple[int, int] | None:
    """(channels, pixels): memory holds (n / channels / pixels, pixels, channels); None for other formats."""
    if x.is_contiguous():
        return max(1, x.numel()), 1
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.shape[1], x.shape[2] * x.shape[3]
    return None


# A row of `state` is what is known before a pass: (threshold's magnitude so far, threshold's place so far,
# how many of the elements that agree with it are to be kept). The magnitude's row before the places' first
# pass is whole. A third value of 0 says that all elements of the threshold's magnitude are kept.


@triton.jit
def _digit(counts, number, left):
    """The threshold's digit in pass `number`, how many that have it are to be kept, and how many have it."""
    digits = tl.arange(0, _BINS)
    found = tl.load(counts + number * _BINS + digits)
    from_top = tl.sum(found, 0) - tl.cumsum(found, 0) + found
    digit = tl.max(tl.where(from_top >= left, digits, 0), 0)
    equal = tl.sum(tl.where(digits == digit, found, 0), 0)
    above = tl.sum(tl.where(digits > digit, found, 0), 0)
    return digit, left - above, equal


@triton.jit
def _known(counts, state, number: tl.constexpr, first: tl.constexpr):
    """The row of `state` before pass `number`, from the one before it and that pass's counts."""
    before = state + (number - 1) * 3
    magnitude, place, left = tl.load(before), tl.load(before + 1), tl.load(before + 2)
    if number <= first:
        digit, left, equal = _digit(counts, number - 1, left)
        magnitude = magnitude * 1024 + digit
        if number == first:
            left = tl.where(equal == left, 0, left)
    elif left > 0:
        digit, left, equal = _digit(counts, number - 1, left)
        place = place * _BINS + digit
    return magnitude, place, left


@triton.jit
def _store(state, number, magnitude, place, left):
    if tl.program_id(0) == 0:
        tl.store(state + number * 3, magnitude)
        tl.store(state + number * 3 + 1, place)
        tl.store(state + number * 3 + 2, left)


@triton.jit
def _add(counts, number, found):
    """Add the histogram `found`; its upper half counted what is to be left out."""
    bins = tl.arange(0, 2 * _BINS)
    tl.atomic_add(counts + number * _BINS + bins, found, mask=(bins < _BINS) & (found > 0), sem="relaxed")


@triton.jit
def _magnitude(scores, index, n):
    """The bits of |score|, which as integers are in the order of the magnitudes; -1 beyond the end."""
    score = tl.load(scores + index, mask=index < n, other=0.0)
    bits = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(index < n, bits, -1)


@triton.jit
def _place(index, channels, pixels, last):
    """Place in row-major order, counted down from `last`, of the elements at `index` in memory."""
    image = channels * pixels
    rest = index % image
    row_major = (index // image * channels + rest % channels) * pixels + rest // channels
    return last - row_major


@triton.jit(do_not_specialize=["n", "kept", "shift"])
def _count_magnitudes(scores, counts, state, n, kept, shift, number: tl.constexpr, block: tl.constexpr):
    if number == 0:
        magnitude, place, left = 0, 0, kept
    else:
        magnitude, place, left = _known(counts, state, number, 3)
    _store(state, number, magnitude, place, left)
    found = tl.zeros((2 * _BINS,), tl.int32)
    for start in range(tl.program_id(0) * block, n, tl.num_programs(0) * block):
        bits = _magnitude(scores, start + tl.arange(0, block), n)
        digits = bits >> shift
        if number == 0:
            agrees = bits >= 0
        else:
            agrees = (digits >> 10) == magnitude
            digits = digits & 1023
        found += tl.histogram(tl.where(agrees, digits, _BINS), 2 * _BINS)
    _add(counts, number, found)


@triton.jit(do_not_specialize=["n", "channels", "pixels", "last", "shift"])
def _count_places(
    scores, counts, state, n, channels, pixels, last, shift,
    number: tl.constexpr, first: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    magnitude, place, left = _known(counts, state, number, first)
    _store(state, number, magnitude, place, left)
    if left > 0:
        found = tl.zeros((2 * _BINS,), tl.int32)
        for start in range(tl.program_id(0) * block, n, tl.num_programs(0) * block):
            index = start + tl.arange(0, block)
            digits = _place(index, channels, pixels, last) >> shift
            agrees = (_magnitude(scores, index, n) == magnitude) & ((digits >> 11) == place)
            found += tl.histogram(tl.where(agrees, digits & 2047, _BINS), 2 * _BINS)
        _add(counts, number, found)


@triton.jit(do_not_specialize=["n", "channels", "pixels", "last"])
def _write(
    values, scores, result, counts, state, n, channels, pixels, last,
    number: tl.constexpr, first: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    magnitude, place, _ = _known(counts, state, number, first)
    index = tl.program_id(0) * block + tl.arange(0, block)
    own = _magnitude(scores, index, n)
    keeps = (own > magnitude) | ((own == magnitude) & (_place(index, channels, pixels, last) >= place))
    value = tl.load(values + index, mask=keeps & (index < n), other=0.0)
    tl.store(result + index, value.to(result.dtype.element_ty), mask=index < n)
