"""Weight distributions: pure functions of (shape, k, stream), in numpy.

Paper: Ramanujan et al. 2020, section 4.1 and appendix. Fans are counted as in torch:
fan_in = prod(shape[1:]), fan_out = shape[0] * prod(shape[2:]). Grouped convolutions count one group.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hiddenweights.config import Distribution
from hiddenweights.errors import choices_error
from hiddenweights.masking.rng import Stream, normals, signs, uniforms

Draw = Callable[[Stream, int], NDArray[np.float32]]


def _centred(source: Stream, n: int) -> NDArray[np.float32]:
    return 2 * uniforms(source, n) - 1  # exact in float32, in [-1, 1)


def _ones(_: Stream, n: int) -> NDArray[np.float32]:
    return np.ones(n, np.float32)


# Per distribution: a function that draws with unit scale, and the scale as a function of (fan_in, fan_out).
DISTRIBUTIONS: dict[Distribution, tuple[Draw, Callable[[int, int], float]]] = {
    "signed_constant": (signs, lambda fan_in, _: math.sqrt(2 / fan_in)),
    "unsigned_constant": (_ones, lambda fan_in, _: math.sqrt(2 / fan_in)),
    "kaiming_normal": (normals, lambda fan_in, _: math.sqrt(2 / fan_in)),
    "kaiming_uniform": (_centred, lambda fan_in, _: math.sqrt(6 / fan_in)),
    "xavier_normal": (normals, lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
    "signed_xavier_constant": (signs, lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
    "default": (_centred, lambda fan_in, _: math.sqrt(1 / fan_in)),
}


def draw(
    shape: Sequence[int], distribution: Distribution, source: Stream, *, scaled_for_k: float | None = None
) -> NDArray[np.float32]:
    """Random weights of one layer: float32 of `shape` (out, in / groups, *kernel).

    With `scaled_for_k` = k the standard deviation is multiplied by sqrt(1/k), which restores the
    variance of the pre-activations if only a fraction k of the weights is kept (paper, section 4.1).
    Raises `UserError` for an unknown distribution.
    """
    if distribution not in DISTRIBUTIONS:
        raise choices_error("distribution", distribution, DISTRIBUTIONS)
    draw_unit, scale_of = DISTRIBUTIONS[distribution]
    scale = scale_of(*_fans(shape))
    if scaled_for_k is not None:
        scale *= math.sqrt(1 / scaled_for_k)
    return (draw_unit(source, math.prod(shape)) * np.float32(scale)).reshape(tuple(shape))


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive
