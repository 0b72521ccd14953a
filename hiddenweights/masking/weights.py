"""Random weights and initial scores of a layer as tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hiddenweights.config import Distribution
from hiddenweights.masking.distributions import draw
from hiddenweights.masking.rng import Stream


def draw_weights(
    shape: Sequence[int], distribution: Distribution, source: Stream, *, scaled_for_k: float | None = None
) -> Tensor:
    """`distributions.draw` as a tensor on the CPU: float32 of `shape` (out, in / groups, *kernel)."""
    return torch.from_numpy(draw(shape, distribution, source, scaled_for_k=scaled_for_k))


def draw_scores(shape: Sequence[int], source: Stream) -> Tensor:
    """Initial scores: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), float32 of `shape`, on the CPU."""
    return draw_weights(shape, "default", source)
