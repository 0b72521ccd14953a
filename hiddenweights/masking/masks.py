"""Masks: how the scores of a layer select the weights that it keeps, and how the scores are trained.

A `Mask` is a parametrization (`torch.nn.utils.parametrize`). It holds the scores of one layer and turns the
frozen weight into the effective weight. A new method is one subclass with an entry in `METHODS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hiddenweights.config import Distribution
from hiddenweights.masking.rng import stream, uniforms
from hiddenweights.masking.topk import Memory, keep_largest, keep_largest_each
from hiddenweights.masking.weights import draw_weights


def kept_count(k: float, n: int) -> int:
    """The number of weights that are kept if the fraction k of n is kept: max(1, round(k * n)).

    The paper's public code drops int((1 - k) * n) instead. Float rounding makes this one too few now and
    then, at most one weight per layer: int((1 - 0.9) * 1000) is 99.
    """
    return max(1, round(k * n))


def top_k_mask(scores: Tensor, kept: int) -> Tensor:
    """1 if |score| is among the `kept` largest of the tensor, else 0; shape and dtype of `scores`.

    There are exactly `kept` ones. Among equal magnitudes the first in row-major order are kept, in any
    memory format. The gradient passes straight through to |score|: d/ds = sign(s) * d/dmask for every
    weight, kept or not (paper, section 3).
    """
    return keep_largest(torch.ones_like(scores), scores, kept)


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype that the layer computes in.

    Under autocast we produce the masked weight in it directly, so that the layer does not cast it again.
    """
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


@dataclass(frozen=True)
class Layer:
    """The origin of a layer's random numbers, for methods that draw new ones during training."""

    name: str
    seed: int
    distribution: Distribution | None
    scaled_for_k: float | None


class GlobalSelection:
    """The masks of a network that share one selection: the top k over all of their scores together.

    A forward pre-hook of the network calls `hold` and a forward hook calls `release`, so that a forward pass
    selects once. Outside a forward pass of the whole network (a submodule is called alone, or recomputed in
    the backward pass) each mask selects again. The hook runs after an exception, too.
    """

    def __init__(self, masks: list["Mask"], k: float) -> None:
        self.masks = masks
        self.kept = kept_count(k, sum(mask.scores.numel() for mask in masks))

    def select(self) -> list[Tensor]:
        """The mask of each layer, of the shape of its weight, in the order of `masks`."""
        chosen = top_k_mask(torch.cat([mask.scores.flatten() for mask in self.masks]), self.kept)
        parts = chosen.split([mask.scores.numel() for mask in self.masks])
        return [part.view(mask.scores.shape) for part, mask in zip(parts, self.masks, strict=True)]

    def hold(self, *_: Any) -> None:
        """Select now, and let every mask use the result until `release`."""
        for mask, chosen in zip(self.masks, self.select(), strict=True):
            mask.chosen = chosen

    def release(self, *_: Any) -> None:
        """Discard the result of `hold`."""
        for mask in self.masks:
            mask.chosen = None


class BatchedSelection:
    """The masks of a network that each select for themselves, made in one call before a forward pass.

    `hold` and `release` are hooks, as in `GlobalSelection`. `chains` are torch's lists of parametrizations.
    They hold the weights, and the first entry of each is an `EdgePopup`.
    """

    def __init__(self, chains: Sequence[Any]) -> None:
        self.chains = chains
        self.memory = Memory()

    def hold(self, *_: Any) -> None:
        """Compute the effective weights now, and let every mask return its own until `release`."""
        masks = [chain[0] for chain in self.chains]
        weights = [chain.original for chain in self.chains]
        effective = keep_largest_each(
            weights,
            [mask.scores for mask in masks],
            [mask.kept for mask in masks],
            [_computed_in(weight) for weight in weights],
            self.memory,
        )
        for mask, own in zip(masks, effective, strict=True):
            mask.effective = own

    def release(self, *_: Any) -> None:
        """Discard the result of `hold`."""
        for chain in self.chains:
            chain[0].effective = None


class Mask(nn.Module):
    """The scores of one layer, and the effective weight computed from them. Subclasses say how.

    `scores` has the shape of the weight and is float32; `k` is the fraction kept, in (0, 1].
    """

    selects_globally = True
    """Whether the method keeps a given k by score. Only then can the selection be global."""
    redraws = False
    """Whether the method replaces weights during training. For other methods they never change."""

    def __init__(self, scores: Tensor, k: float, layer: Layer) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.kept = kept_count(k, scores.numel())
        self.layer = layer
        self.group: GlobalSelection | None = None  # under global selection
        self.chosen: Tensor | None = None  # the mask selected by the group, during a forward pass

    def mask(self) -> Tensor:
        """The layer's mask of 0 and 1, float32, differentiable in the scores; shape of the weight."""
        if self.chosen is not None:
            return self.chosen
        if self.group is not None:
            return self.group.select()[self.group.masks.index(self)]
        return top_k_mask(self.scores, self.kept)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of `weight`'s shape and dtype."""
        return weight * self.mask().to(weight.dtype)

    def after_step(self, weight: Tensor, step: int) -> None:
        """Called after optimiser step number `step` (from 1) with the frozen weight."""


class EdgePopup(Mask):
    """Keep the top k by |score|, learn the scores straight through (Ramanujan et al. 2020)."""

    effective: Tensor | None = None
    """The effective weight computed by `BatchedSelection`, during a forward pass."""

    def forward(self, weight: Tensor) -> Tensor:
        if self.effective is not None:
            return self.effective
        if self.group is not None or type(self).mask is not Mask.mask:  # a subclass may select differently
            return super().forward(weight)
        return keep_largest(weight, self.scores, self.kept, _computed_in(weight))  # weight * mask in one pass


class RandomMask(EdgePopup):
    """A fixed random mask with the same k: the control arm. Nothing is trained."""

    def __init__(self, scores: Tensor, k: float, layer: Layer) -> None:
        super().__init__(scores, k, layer)
        self.scores.requires_grad_(False)


class Sampled(Mask):
    """Keep each weight with probability sigmoid(score), drawn again whenever the layer is used.

    Zhou et al., "Deconstructing Lottery Tickets" (NeurIPS 2019). The gradient goes straight through
    the draw to the probability. Draws come from torch's generator, also in evaluation.
    """

    selects_globally = False

    def mask(self) -> Tensor:
        probability = torch.sigmoid(self.scores)
        drawn = torch.rand_like(probability) < probability
        return drawn + (probability - probability.detach())  # the difference is 0, and carries the gradient


class IteRand(EdgePopup):
    """Edge-popup that redraws, every `period` steps, each dropped weight with probability `rate`.

    Chijiwa et al., "Pruning Randomly Initialized Neural Networks with Iterative Randomization"
    (NeurIPS 2021), with the values of their CIFAR-10 experiments: K_per = 300 and r = 0.1.
    """

    redraws = True
    period = 300
    rate = 0.1

    @torch.no_grad()
    def after_step(self, weight: Tensor, step: int) -> None:
        if step % self.period:
            return
        assert self.layer.distribution is not None  # `supermask` refuses the combination
        source = stream(self.layer.seed, "iterand", self.layer.name, step)
        fresh = draw_weights(
            weight.shape, self.layer.distribution, source, scaled_for_k=self.layer.scaled_for_k
        )
        lucky = torch.from_numpy(uniforms(source, weight.numel())).view(weight.shape) < self.rate
        redrawn = lucky.to(weight.device) & (self.mask() == 0)
        weight.copy_(torch.where(redrawn, fresh.to(weight.device), weight))


class Biprop(Mask):
    """Edge-popup over binary weights: alpha * sign(w) if kept, with alpha the mean |w| of the kept weights.

    Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis" (ICLR 2021). The gradient treats the
    gain alpha as a constant: d/ds = sign(s) * alpha * sign(w) * d/dw_eff. (Their public code uses |w| instead
    of alpha there.) If all weights have the same magnitude, this is edge-popup.
    """

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.mask()
        kept = mask.detach()
        # Global selection may leave a layer without kept weights. The gain is then 0, not 0/0.
        gain = (weight.abs() * kept).sum() / kept.sum().clamp(min=1)
        # In this order: the product has the memory format of its first factor. Under global selection the
        # mask has another one, and the convolution would sum in another order than that of the ticket.
        return (gain * weight.sign() * mask).to(weight.dtype)


METHODS: dict[str, type[Mask]] = {
    "edge_popup": EdgePopup,
    "sampled": Sampled,
    "random": RandomMask,
    "iterand": IteRand,
    "biprop": Biprop,
}
