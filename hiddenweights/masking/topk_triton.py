"""`keep_largest` of all layers of a network on an NVIDIA GPU, in the number of launches that one layer needs.

Each program handles one block of one layer. The previous step gives a bracket for each layer's threshold:

1. `_collect` counts the magnitudes above the bracket of each layer and collects those inside it. The last
   block of a layer selects the threshold among them, or sees from the counts that the bracket missed it.
2. `_narrow` runs for the layers whose bracket missed. It counts all magnitudes by their upper 16 bits, which
   gives a bracket that contains the threshold.
3. `_collect` runs again for these layers.
4. `_write` writes the masked weights.

If every bracket contained its threshold, the second and third launch return immediately. A call without a
`Memory` starts with the second. So the result never depends on a bracket. A key consists of the 31 bits of
the magnitude and the position counted from the end. No two keys are equal, so ties need no special rule.
The CPU reads no value and every shape is fixed, so a CUDA graph can record the launches.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, no-any-return, import-untyped"
# Triton's kernels have types of their own.

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hiddenweights.masking.topk import Memory

_BLOCK = 4096
_PROGRAMS = 264  # for launches that usually return immediately: two per multiprocessor of an H100
_MOST_LAYERS = 128  # per launch, because its arguments are pointers to their tensors
_HALF, _WIDTH = tl.constexpr(15), tl.constexpr(1 << 15)  # the lower bits, which `_narrow` leaves open
_BINS = tl.constexpr(1 << 16)
_DIGITS = tl.constexpr(256)
_CROWD = tl.constexpr(1 << 15)  # the most candidates that one program looks through, if it can be avoided
_TOP = tl.constexpr(0x7FFFFFFF)

# The rows of the table and of the state, int32, with one column per layer.
_FIRST, _LENGTH, _KEPT, _CHANNELS, _PIXELS, _ROOM = (tl.constexpr(i) for i in range(6))
_LOW, _HIGH, _FOUND, _ABOVE, _INSIDE, _ARRIVED, _MAGNITUDE, _PLACE, _MISSES = (
    tl.constexpr(i) for i in range(9)
)

Layer = tuple[int, int, int, int]  # length, kept, channels, pixels


class Room:
    """The working memory on a GPU for the layers of one network, kept from step to step."""

    def __init__(self, layers: tuple[Layer, ...], device: torch.device) -> None:
        self.layers, self.device = layers, device
        columns = _columns(layers)
        # Zeros mean that no threshold has been found. A selection leaves the bins and counts at zero.
        zeros = torch.zeros(9 * columns + len(layers) * _BINS.value, dtype=torch.int32, device=device)
        self.state, self.bins = zeros[: 9 * columns].view(9, columns), zeros[9 * columns :]
        self.candidates = torch.empty(sum(row[0] for row in layers), dtype=torch.int64, device=device)

    def misses(self) -> list[int]:
        """How often the bracket of each layer missed its threshold. The first step has no bracket."""
        counts: list[int] = self.state[_MISSES.value, : len(self.layers)].tolist()
        return counts


def supports(values: Sequence[Tensor], scores: Sequence[Tensor]) -> bool:
    """Whether the kernels support these layers: float32, values and scores in one dense memory format."""
    if len(scores) > _MOST_LAYERS or sum(score.numel() for score in scores) >= 2**31 - _BLOCK:
        return False
    return all(
        value.dtype == score.dtype == torch.float32
        and _layout(score) is not None
        and _layout(score) == _layout(value)
        and value.data_ptr() % 16 == score.data_ptr() % 16 == 0
        for value, score in zip(values, scores, strict=True)
    )


def keep_largest(
    values: Sequence[Tensor],
    scores: Sequence[Tensor],
    kept: Sequence[int],
    dtype: torch.dtype,
    memory: Memory | None = None,
) -> tuple[Tensor, ...]:
    """`topk.keep_largest` of each layer, for layers that `supports` accepts. The results have `dtype`."""
    layers, device = _layers(scores, kept), scores[0].device
    room: Room | None = memory.room if memory else None
    if room is None or (room.layers, room.device) != (layers, device):
        room = Room(layers, device)
    results = tuple(torch.empty_like(value, dtype=dtype) for value in values)
    blocks, columns, values, scores = _blocks(layers), _columns(layers), tuple(values), tuple(scores)
    few, known = min(blocks, _PROGRAMS), (_table(layers, device), room.state)
    if memory:
        memory.room = room
        _launch(_collect, blocks, scores, *known, room.candidates, blocks, columns=columns, again=False)
    _launch(_narrow, few, scores, *known, room.bins, blocks, columns=columns)
    _launch(_collect, few, scores, *known, room.candidates, blocks, columns=columns, again=True)
    _launch(_write, blocks, values, scores, results, *known, columns=columns)
    return results


def straight_through(
    grads: Sequence[Tensor], values: Sequence[Tensor], scores: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """sign(score) * value * grad of each layer, float32, in one launch; `grads` are of one dtype."""
    grads = [_as(grad, score) for grad, score in zip(grads, scores, strict=True)]
    layers = _layers(scores, [1] * len(scores))
    results = tuple(torch.empty_like(score) for score in scores)
    _launch(
        _pass_back, _blocks(layers), tuple(grads), tuple(values), tuple(scores), results,
        _table(layers, scores[0].device), columns=_columns(layers),
    )  # fmt: skip
    return results


def _launch(kernel: Any, programs: int, *arguments: object, **constants: object) -> None:
    kernel[(programs,)](*arguments, **constants, block=_BLOCK, num_warps=8)


def _as(grad: Tensor, score: Tensor) -> Tensor:
    """`grad` in the memory format of `score`, aligned so that a kernel can read 16 bytes at a time."""
    if _layout(grad) == _layout(score) and grad.data_ptr() % 16 == 0:
        return grad
    return torch.empty_like(score, dtype=grad.dtype).copy_(grad)


def _layout(x: Tensor) -> tuple[int, int] | None:
    """(channels, pixels): memory holds (n / channels / pixels, pixels, channels); None for other formats."""
    if x.is_contiguous():
        return x.numel(), 1
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.shape[1], x.shape[2] * x.shape[3]
    return None


def _layers(scores: Sequence[Tensor], kept: Sequence[int]) -> tuple[Layer, ...]:
    layouts = [_layout(score) for score in scores]
    return tuple(
        (score.numel(), count, *layout)
        for score, count, layout in zip(scores, kept, layouts, strict=True)
        if layout
    )


def _columns(layers: Sequence[Layer]) -> int:
    return triton.next_power_of_2(len(layers))


def _blocks(layers: Sequence[Layer]) -> int:
    return sum(triton.cdiv(length, _BLOCK) for length, *_ in layers)


@functools.cache  # for good: a CUDA graph may hold its address
def _table(layers: tuple[Layer, ...], device: torch.device) -> Tensor:
    """Int32 (6, columns) on `device`."""
    columns: list[tuple[int, ...]] = []
    first = room = 0
    for length, kept, channels, pixels in layers:
        columns.append((first, length, kept, channels, pixels, room))
        first += triton.cdiv(length, _BLOCK)
        room += length
    columns += [(2**31 - 1, 0, 0, 1, 1, 0)] * (_columns(layers) - len(layers))
    return torch.tensor(columns, dtype=torch.int32).T.contiguous().to(device)


# --- kernels -----------------------------------------------------------------------------------------------


@triton.jit
def _layer_of(table, number, columns: tl.constexpr, block: tl.constexpr):
    """The layer of block `number`, the start of the block in the layer, and the length of the layer."""
    first = tl.load(table + _FIRST * columns + tl.arange(0, columns))
    layer = tl.sum((first <= number).to(tl.int32), 0) - 1
    begin = (number - tl.load(table + _FIRST * columns + layer)) * block
    return layer, begin, tl.load(table + _LENGTH * columns + layer)


@triton.jit
def _tensor_of(tensors, layer):
    """The address of one of `tensors`."""
    address = tensors[0].to(tl.int64)
    for i in tl.static_range(1, len(tensors)):
        address = tl.where(layer == i, tensors[i].to(tl.int64), address)
    # Every tensor begins at a multiple of 16 bytes, so that whole blocks are read 16 bytes at a time.
    return tl.multiple_of(address.to(tensors[0].dtype), 16)


@triton.jit
def _read(tensor, begin, length, block: tl.constexpr):
    index = begin + tl.arange(0, block)
    if begin + block <= length:
        x = tl.load(tensor + index)
    else:
        x = tl.load(tensor + index, mask=index < length, other=0.0)
    return x


@triton.jit
def _put(tensor, begin, length, x, block: tl.constexpr):
    index = begin + tl.arange(0, block)
    if begin + block <= length:
        tl.store(tensor + index, x)
    else:
        tl.store(tensor + index, x, mask=index < length)


@triton.jit
def _magnitudes(scores, layer, begin, length, block: tl.constexpr):
    """The bits of |score|. As integers they have the order of the magnitudes. -1 beyond the end."""
    score = _read(_tensor_of(scores, layer), begin, length, block)
    bits = score.to(tl.int32, bitcast=True) & _TOP
    return tl.where(begin + tl.arange(0, block) < length, bits, -1)


@triton.jit
def _place(table, layer, index, columns: tl.constexpr):
    """Place in row-major order, counted from the end, of the elements at `index` in memory."""
    length = tl.load(table + _LENGTH * columns + layer)
    channels = tl.load(table + _CHANNELS * columns + layer)
    pixels = tl.load(table + _PIXELS * columns + layer)
    image = channels * pixels
    rest = index % image
    return length - 1 - ((index // image * channels + rest % channels) * pixels + rest // channels)


@triton.jit
def _is_last(table, state, layer, length, columns: tl.constexpr, block: tl.constexpr):
    """Whether this is the last block of its layer to arrive here. It then sees the writes of all others."""
    tl.debug_barrier()  # all threads of this one have written
    arrived = tl.atomic_add(state + _ARRIVED * columns + layer, 1, sem="acq_rel", scope="gpu")
    return arrived == tl.cdiv(length, block) - 1


@triton.jit
def _all_found(table, state, columns: tl.constexpr):
    each = tl.arange(0, columns)
    found = tl.load(state + _FOUND * columns + each) + (tl.load(table + _LENGTH * columns + each) == 0)
    return tl.min(found, 0) > 0


@triton.jit(do_not_specialize=["blocks"])
def _collect(
    scores, table, state, candidates, blocks,
    columns: tl.constexpr, again: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    # Not one condition: the first is known when this is compiled.
    if again:  # noqa: SIM102
        if _all_found(table, state, columns):
            return
    for number in range(tl.program_id(0), blocks, tl.num_programs(0)):
        layer, begin, length = _layer_of(table, number, columns, block)
        due = True
        if again:
            due = tl.load(state + _FOUND * columns + layer) == 0
        if due:
            bits = _magnitudes(scores, layer, begin, length, block)
            low = tl.maximum(tl.load(state + _LOW * columns + layer), 0)
            high = tl.maximum(tl.load(state + _HIGH * columns + layer), -1)
            inside = ((bits >= low) & (bits <= high)).to(tl.int32)
            n_inside = tl.sum(inside, 0)
            n_above = tl.sum((bits > high).to(tl.int32), 0)
            tl.atomic_add(state + _ABOVE * columns + layer, n_above, sem="relaxed")
            if n_inside > 0:
                before = tl.atomic_add(state + _INSIDE * columns + layer, n_inside, sem="relaxed")
                room = candidates + tl.load(table + _ROOM * columns + layer) + before
                entry = (bits.to(tl.int64) << 32) | (begin + tl.arange(0, block)).to(tl.int64)
                tl.store(room + tl.cumsum(inside, 0) - 1, entry, mask=inside > 0)
            if _is_last(table, state, layer, length, columns, block):
                _settle(table, state, candidates, layer, low, high, columns, again, block)


@triton.jit
def _settle(
    table, state, candidates, layer, low, high,
    columns: tl.constexpr, again: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Find a layer's threshold among its candidates, if it is there, and the bracket of the next step."""
    # Bypass the L1 cache, which does not see the writes of other multiprocessors.
    inside = tl.load(state + _INSIDE * columns + layer, cache_modifier=".cg")
    above = tl.load(state + _ABOVE * columns + layer, cache_modifier=".cg")
    left = tl.load(table + _KEPT * columns + layer) - above
    found = (left > 0) & (left <= inside)
    if not again:
        found = found & (inside <= _CROWD)
    if found:
        own = candidates + tl.load(table + _ROOM * columns + layer)
        threshold = _select(table, own, layer, inside, left, low, high, columns, block)
        magnitude = (threshold >> 32).to(tl.int32)
        tl.store(state + _MAGNITUDE * columns + layer, magnitude)
        tl.store(state + _PLACE * columns + layer, (threshold & _TOP).to(tl.int32))
        length = tl.load(table + _LENGTH * columns + layer)
        # Three times the magnitudes that crossed a threshold per step in ResNet-18, 15 times those in Conv4.
        wanted = 512 + length // 1024
        reach = (high - low + 1).to(tl.int64) * wanted // inside + 1
        reach = tl.minimum(tl.maximum(reach, 1 << 10), 1 << 24).to(tl.int32)
        small = length <= block
        tl.store(state + _LOW * columns + layer, tl.where(small, 0, tl.maximum(magnitude - reach, 0)))
        tl.store(state + _HIGH * columns + layer, tl.where(small, _TOP, magnitude + reach))
    tl.store(state + _FOUND * columns + layer, found.to(tl.int32))
    tl.store(state + _ABOVE * columns + layer, 0)
    tl.store(state + _INSIDE * columns + layer, 0)
    tl.store(state + _ARRIVED * columns + layer, 0)


@triton.jit
def _select(
    table, candidates, layer, count, left, low, high, columns: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """The key that exactly `left` of the `count` candidates reach or exceed, found digit by digit."""
    part: tl.constexpr = block // 2  # uses half the registers, so that more blocks run at once
    bottom, top = low.to(tl.int64), high.to(tl.int64)
    threshold = bottom << 32
    shift = 32
    while (bottom >> (shift - 32)) != (top >> (shift - 32)):
        shift += 8
    prefix = bottom >> (shift - 32)
    undecided = left < count
    while undecided:
        shift -= 8
        found = tl.zeros((_DIGITS,), tl.int32)
        for start in range(0, count, part):
            index = start + tl.arange(0, part)
            entry = tl.load(candidates + index, mask=index < count, other=0, cache_modifier=".cg")
            key = entry
            if shift < 32:  # magnitudes tie
                place = _place(table, layer, (entry & _TOP).to(tl.int32), columns)
                key = (entry >> 32 << 32) | place.to(tl.int64)
            agrees = (index < count) & ((key >> shift) >> 8 == prefix)
            digit = tl.where(agrees, (key >> shift) & 255, 0).to(tl.int32)
            strangers = part - tl.sum(agrees.to(tl.int32), 0)
            found += tl.histogram(digit, _DIGITS) - tl.where(tl.arange(0, _DIGITS) == 0, strangers, 0)
        digits = tl.arange(0, _DIGITS)
        from_top = tl.sum(found, 0) - tl.cumsum(found, 0) + found
        digit = tl.max(tl.where(from_top >= left, digits, 0), 0)
        equal = tl.sum(tl.where(digits == digit, found, 0), 0)
        left = left - tl.sum(tl.where(digits > digit, found, 0), 0)
        prefix = prefix * 256 + digit
        threshold = prefix << shift
        undecided = left < equal
    return threshold


@triton.jit(do_not_specialize=["blocks"])
def _narrow(scores, table, state, bins, blocks, columns: tl.constexpr, block: tl.constexpr):
    if _all_found(table, state, columns):
        return
    for number in range(tl.program_id(0), blocks, tl.num_programs(0)):
        layer, begin, length = _layer_of(table, number, columns, block)
        if tl.load(state + _FOUND * columns + layer) == 0:
            bits = _magnitudes(scores, layer, begin, length, block)
            own = bins + layer.to(tl.int64) * _BINS
            tl.atomic_add(own + (bits >> _HALF), 1, mask=bits >= 0, sem="relaxed")
            if _is_last(table, state, layer, length, columns, block):
                half = _bin_of_threshold(own, tl.load(table + _KEPT * columns + layer), block)
                tl.store(state + _LOW * columns + layer, half << _HALF)
                tl.store(state + _HIGH * columns + layer, (half << _HALF) + (_WIDTH - 1))
                tl.store(state + _ARRIVED * columns + layer, 0)
                misses = state + _MISSES * columns + layer
                tl.store(misses, tl.load(misses) + 1)


@triton.jit
def _bin_of_threshold(bins, kept, block: tl.constexpr):
    """The bin that contains the `kept`-th largest magnitude. Sets all bins to zero."""
    above, threshold = 0, 0
    for number in range(1, _BINS // block + 1):
        index = _BINS - number * block + tl.arange(0, block)
        found = tl.load(bins + index, cache_modifier=".cg")
        from_top = above + tl.sum(found, 0) - tl.cumsum(found, 0) + found
        threshold = tl.maximum(threshold, tl.max(tl.where(from_top >= kept, index, 0), 0))
        above += tl.sum(found, 0)
        tl.store(bins + index, tl.zeros((block,), tl.int32))
    return threshold


@triton.jit
def _write(values, scores, results, table, state, columns: tl.constexpr, block: tl.constexpr):
    layer, begin, length = _layer_of(table, tl.program_id(0), columns, block)
    bits = _magnitudes(scores, layer, begin, length, block)
    magnitude = tl.load(state + _MAGNITUDE * columns + layer)
    place = tl.load(state + _PLACE * columns + layer)
    keeps = bits >= magnitude
    if place > 0:
        own = _place(table, layer, begin + tl.arange(0, block), columns)
        keeps = (bits > magnitude) | ((bits == magnitude) & (own >= place))
    value = _read(_tensor_of(values, layer), begin, length, block)
    result = _tensor_of(results, layer)
    _put(result, begin, length, tl.where(keeps, value, 0.0).to(result.dtype.element_ty), block)


@triton.jit
def _pass_back(grads, values, scores, results, table, columns: tl.constexpr, block: tl.constexpr):
    layer, begin, length = _layer_of(table, tl.program_id(0), columns, block)
    score = _read(_tensor_of(scores, layer), begin, length, block)
    value = _read(_tensor_of(values, layer), begin, length, block)
    grad = _read(_tensor_of(grads, layer), begin, length, block).to(tl.float32)
    signed = tl.where(score > 0, value, tl.where(score < 0, -value, 0.0))
    _put(_tensor_of(results, layer), begin, length, grad * signed, block)
