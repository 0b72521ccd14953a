"""The selection behind every mask: keep the values with the largest scores, exactly and without a sort."""

import functools
import importlib
import inspect
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiddenweights.errors import UserError

_library = torch.library.Library("hiddenweights", "DEF")
_library.define("keep_largest(Tensor values, Tensor scores, int kept, ScalarType dtype) -> Tensor")

# The sample that brackets a threshold consists of every 61st score (a prime, so that it does not follow the
# rows of a weight). Below `_SMALL` scores it is faster to partition them all. A chunk fits into the cache.
_SMALL, _STRIDE, _CHUNK = 1 << 13, 61, 1 << 18


def keep_largest(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype | None = None) -> Tensor:
    """The value if |score| is among the `kept` largest of the tensor, else 0; shape of `values`.

    Exactly `kept` values are kept, 1 <= kept <= n. Among equal magnitudes the first in row-major order are
    kept, in any memory format. `scores` are float32 or float64 and have the shape of `values`. The result
    has the given `dtype`, by default that of `values`. The gradient passes straight through to |score|:
    d/dscore = sign(score) * value * d/dresult for every weight, kept or not (Ramanujan et al. 2020,
    section 3). It treats `values` as constants.
    """
    return keep_largest_each([values], [scores], [kept], [dtype or values.dtype])[0]


class Memory:
    """State that one selection on a GPU leaves for the next one of the same network. A copy is empty.

    It only affects the time of a selection, never its result.
    """

    def __init__(self) -> None:
        self.room: Any = None

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        return Memory, ()


def keep_largest_each(
    values: Sequence[Tensor],
    scores: Sequence[Tensor],
    kept: Sequence[int],
    dtypes: Sequence[torch.dtype],
    memory: Memory | None = None,
) -> tuple[Tensor, ...]:
    """`keep_largest` of several tensors, each selected separately, as a single node of the autograd graph.

    On a GPU, one set of kernel launches handles all tensors, forward and backward. On a CPU, this helps small
    layers, whose cost is mostly the Python overhead of a call and of a node of the graph.

    Raises `UserError` for scores of half precision: so many of them tie that the mask would be another one.
    """
    for score in scores:
        if score.dtype not in (torch.float32, torch.float64):
            raise UserError(f"scores: are {score.dtype}, not float32; use torch.autocast instead of .to()")
    results: tuple[Tensor, ...] = _StraightThrough.apply(kept, dtypes, memory, *values, *scores)
    return results


class _StraightThrough(torch.autograd.Function):
    # Not registered with the operator: that would cost more per call, and `torch.func` could not trace it.
    @staticmethod
    def forward(
        kept: Sequence[int], dtypes: Sequence[torch.dtype], memory: Memory | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        values, scores = tensors[: len(kept)], tensors[len(kept) :]
        kernels = _kernels_for(values, scores)
        if kernels is not None and len(set(dtypes)) == 1:
            with torch.cuda.device_of(scores[0]):
                results: tuple[Tensor, ...] = kernels.keep_largest(values, scores, kept, dtypes[0], memory)
            return results
        select = torch.ops.hiddenweights.keep_largest
        return tuple(select(*layer) for layer in zip(values, scores, kept, dtypes, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, scores = ctx.saved_tensors[: len(grads)], ctx.saved_tensors[len(grads) :]
        # For second derivatives only torch's own operations are used.
        kernels = None if torch.is_grad_enabled() else _kernels_for(values, scores)
        if kernels is not None and len({grad.dtype for grad in grads}) == 1:
            with torch.cuda.device_of(scores[0]):
                found = kernels.straight_through(grads, values, scores)
        else:
            found = tuple(g * s.sign().mul_(v) for v, s, g in zip(values, scores, grads, strict=True))
        return None, None, None, *(None for _ in values), *found


# Torch reads the signature at every call. Storing it reduces that from 12 us to 2 us (torch 2.15).
_StraightThrough.forward.__signature__ = inspect.signature(_StraightThrough.forward)  # type: ignore[attr-defined]


@torch.library.register_fake("hiddenweights::keep_largest", lib=_library)  # type: ignore[untyped-decorator]
def _(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(values, dtype=dtype)


@torch.library.impl(_library, "keep_largest", "CompositeExplicitAutograd")
def _on_any_device(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    """The selection in torch's own operations. None of them waits for a result from the device."""
    magnitude = scores.abs()
    threshold = _in_memory_order(magnitude).topk(kept, sorted=False).values.min()
    above, tied = magnitude > threshold, magnitude == threshold
    place = tied.flatten().cumsum(0).view(scores.shape)
    return torch.where(above | (tied & (place <= kept - above.count_nonzero())), values, 0.0).to(dtype)


@torch.library.impl(_library, "keep_largest", "CUDA")
def _on_cuda(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    """The selection in our Triton kernels, or in torch's operations if Triton or its compiler is missing."""
    kernels = _kernels()
    if kernels is None or not kernels.supports([values], [scores]):
        return _on_any_device(values, scores, kept, dtype)
    with torch.cuda.device_of(scores):
        result: Tensor = kernels.keep_largest([values], [scores], [kept], dtype)[0]
    return result


def _kernels_for(values: Sequence[Tensor], scores: Sequence[Tensor]) -> ModuleType | None:
    """Our kernels if they support all of these layers. None while torch compiles: it needs the operator."""
    if torch.compiler.is_compiling() or not all(score.is_cuda for score in scores):
        return None
    kernels = _kernels()
    return kernels if kernels is not None and kernels.supports(values, scores) else None


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        kernels = importlib.import_module("hiddenweights.masking.topk_triton")
    except ImportError:  # no Triton
        return None
    # Where Triton looks for the compiler that it needs at the first launch.
    if "CC" in os.environ or shutil.which("gcc") or shutil.which("clang"):
        return kernels
    warnings.warn(
        "no C compiler (gcc, clang or $CC), which Triton needs: the masks are selected by slower operations"
        " of torch, with the same result",
        stacklevel=2,
    )
    return None


@torch.library.impl(_library, "keep_largest", "CPU")
def _on_cpu(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    """One pass to find the bound and one to apply it; a third if scores tie at the bound."""
    bound, ties = -1.0, 0
    if kept < scores.numel():
        bound, ties = _bound(_in_memory_order(scores).numpy(), scores.numel() - kept)
    result = _where_above(values, scores, bound)
    if ties:
        result = result.to(values.dtype)
        places = _first_at(bound, scores, ties)
        result[places] = values[places]
    return result.to(dtype)


def _where_above(values: Tensor, scores: Tensor, bound: float) -> Tensor:
    """The value if |score| > `bound`, else 0, in one fused pass.

    This is the gradient of hardshrink, whose derivative is 1 outside [-bound, bound] and 0 inside.
    """
    result: Tensor = torch.ops.aten.hardshrink_backward(values, scores, bound)
    return result


def _first_at(bound: float, scores: Tensor, n: int) -> tuple[Tensor, ...]:
    """The first `n` positions with |score| = `bound` in row-major order, one index per axis."""
    axes, flat = _memory_axes(scores), _in_memory_order(scores).numpy()
    found = [
        start + np.flatnonzero(np.abs(flat[start : start + _CHUNK]) == bound)
        for start in range(0, len(flat), _CHUNK)
    ]
    in_memory = np.unravel_index(np.concatenate(found), [scores.shape[axis] for axis in axes])
    indices = [in_memory[axes.index(axis)] for axis in range(scores.ndim)]
    if axes != sorted(axes):
        order = np.lexsort(indices[::-1])
        indices = [index[order] for index in indices]
    return tuple(torch.from_numpy(index[:n]) for index in indices)


def _memory_axes(x: Tensor) -> list[int]:
    """The axes of `x`, the outermost in memory first."""
    return sorted(range(x.ndim), key=x.stride, reverse=True)


def _in_memory_order(x: Tensor) -> Tensor:
    """The elements of `x`, shape (n,), in their order in memory: a view, if `x` is dense."""
    return x.permute(_memory_axes(x)).reshape(-1)


def _bound(scores: NDArray[np.floating], rank: int) -> tuple[float, int]:
    """The element `rank - 1` of the sorted |scores| (ascending, from 0), and how many equal ones follow it.

    Floyd and Rivest, "Expected time bounds for selection" (CACM 1975). A sample gives a bracket that almost
    surely contains the elements `rank - 1` and `rank` (4 standard deviations of its quantile). One pass
    counts the scores below the bracket and collects those inside it. If the count shows that the bracket
    missed, all scores are partitioned. The result therefore never depends on the sample.
    """
    n = len(scores)
    if n > _SMALL:
        sample = np.abs(scores[::_STRIDE])
        size, p = len(sample), rank / n
        centre, spread = round(p * size), 4 + math.ceil(4 * math.sqrt(p * (1 - p) * size))
        ends = max(centre - spread, 0), min(centre + spread, size - 1)
        sample.partition(ends)
        low = sample[ends[0]] if ends[0] > 0 else -1.0
        high = sample[ends[1]] if ends[1] < size - 1 else np.inf
        below, parts = 0, []
        for start in range(0, n, _CHUNK):
            part = np.abs(scores[start : start + _CHUNK])
            inside = part > low
            below += len(part) - int(np.count_nonzero(inside))
            inside &= part <= high
            parts.append(part[np.flatnonzero(inside)])
        bracketed = np.concatenate(parts)
        if 0 < rank - below < len(bracketed):
            return _partition(bracketed, rank - below)
    return _partition(np.abs(scores), rank)


def _partition(magnitudes: NDArray[np.floating], rank: int) -> tuple[float, int]:
    magnitudes.partition(rank)
    bound = magnitudes[:rank].max()
    ties = np.count_nonzero(magnitudes[rank:] == bound) if bound == magnitudes[rank] else 0
    return float(bound), int(ties)
