"""`supermask(model)`: any `nn.Module` becomes a frozen random network with a learnable mask per layer."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hiddenweights.config import Distribution, Method, Selection
from hiddenweights.errors import UserError, choices_error
from hiddenweights.masking.masks import METHODS, EdgePopup, Group, Layer, Mask, Together
from hiddenweights.masking.rng import stream
from hiddenweights.masking.weights import DISTRIBUTIONS, draw_scores, draw_weights

Biases = Literal["zero", "frozen", "trained"]
Norms = Literal["unit", "trained"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def supermask(
    model: nn.Module,
    *,
    k: float = 0.5,
    method: Method | type[Mask] = "edge_popup",
    distribution: Distribution | None = "signed_constant",
    scaled: bool = False,
    selection: Selection = "layer",
    biases: Biases = "zero",
    norms: Norms = "unit",
    weight_seed: int = 0,
    score_seed: int = 0,
) -> nn.Module:
    """Freeze `model`'s weights at random values and give each layer a mask to learn; returns `model`.

    Masked are the weights of every Linear and convolution (first and last layer included) and the input
    projections of `nn.MultiheadAttention`. The scores are the only parameters left to train; `model`
    itself stays what it was, its `weight` attributes now yield the effective weights. Paper: Ramanujan
    et al. 2020, section 3.

    Args:
        model: changed in place.
        k: fraction of weights kept, in (0, 1].
        method: a name of `METHODS`, or a subclass of `Mask`.
        distribution: of the frozen weights; None keeps the values the model has.
        scaled: multiply the weights' standard deviation by sqrt(1/k).
        selection: keep the top k of each layer, or of all masked weights together.
        biases: "zero" (as the paper, whose networks have none), "frozen" as they are, or "trained".
        norms: affine parameters of normalisation layers: "unit" (weight 1, bias 0, frozen: the paper's
            non-affine BatchNorm) or "trained".
        weight_seed: seed of the weights. The draws of a layer depend only on the seed and its name.
        score_seed: seed of the scores, likewise.

    Any other parameter (an embedding, a class token) stays frozen as it is.

    Raises:
        UserError: no maskable weight; a layer that is parametrized already, is lazy and without a shape,
            or shares its weight with another; k outside (0, 1]; an unknown choice; a combination that
            has no meaning.
    Warns:
        UserWarning: once, naming the layers that keep a single weight of several.
    """
    mask_type = _mask_type(method)
    if not 0 < k <= 1:
        raise UserError(f"k: {k!r} is the fraction of weights kept, in (0, 1]")
    for field, value, known in (
        ("distribution", distribution, (*DISTRIBUTIONS, None)),
        ("selection", selection, ("layer", "global")),
        ("biases", biases, ("zero", "frozen", "trained")),
        ("norms", norms, ("unit", "trained")),
    ):
        if value not in known:
            raise choices_error(field, value, known)
    if selection == "global" and not mask_type.selects_globally:
        raise UserError(f"selection: 'global' has no meaning for method {method!r}, which chooses no top k")
    if mask_type.redraws and distribution is None:
        raise UserError(f"distribution: None, but method {method!r} draws new weights and needs one")
    layers = weight_layers(model)
    _freeze(model, {id(owner) for owner, _, _ in layers}, biases, norms)

    scaled_for_k = k if scaled else None
    for owner, attribute, name in layers:
        weight: nn.Parameter = getattr(owner, attribute)
        if distribution is not None:
            set_weights(weight, name, distribution, weight_seed, scaled_for_k)
        scores = draw_scores(weight.shape, stream(score_seed, "scores", name)).to(weight.device)
        layer = Layer(name, weight_seed, distribution, scaled_for_k)
        # unsafe: without torch's trial run of the mask, which costs time and, for `sampled`, random numbers
        parametrize.register_parametrization(owner, attribute, mask_type(scores, k, layer), unsafe=True)
    _warn_of_single_weights(model, selection)
    if selection == "global":
        masks = [*masks_of(model).values()]
        group = Group(masks, k)
        for mask in masks:
            mask.group = group
        model.register_forward_pre_hook(group.hold)
        model.register_forward_hook(group.release, always_call=True)
    return model


def select_together(network: nn.Module) -> None:
    """Let a supermask `network` make all its masked weights in one call before each forward pass.

    The results are the same; a step of the digits' small networks takes a seventh less time. Not for
    networks that recompute parts in the backward pass (`torch.utils.checkpoint`), where no forward pass of
    the whole precedes. Does nothing where the selection is global, or the method no edge-popup.
    """
    chains = list(_mask_chains(network))
    alone = all(chain[0].group is None and type(chain[0]).forward is EdgePopup.forward for chain in chains)
    if chains and alone:
        together = Together(chains)
        network.register_forward_pre_hook(together.hold)
        network.register_forward_hook(together.release, always_call=True)


def weight_layers(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(owner, attribute, dotted name) of every weight that a mask can cover, in the model's order.

    Raises `UserError` when there is none, when one is parametrized already, or shared by two layers.
    """
    found: list[tuple[nn.Module, str, str]] = []
    owner_of: dict[int, str] = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(f"model: layer {path!r} is parametrized already")
        for attribute in _maskable(module):
            name = f"{path}.{attribute}" if path else attribute
            if isinstance(getattr(module, attribute), nn.parameter.UninitializedParameter):
                raise UserError(f"model: {name!r} has no shape yet; call the model once before it is masked")
            other = owner_of.setdefault(id(getattr(module, attribute)), name)
            if other != name:
                raise UserError(
                    f"model: {name!r} is the same tensor as {other!r}; shared weights have no mask"
                )
            found.append((module, attribute, name))
    if not found:
        raise UserError(f"model: {type(model).__name__} has no weight that a mask can cover (Linear, Conv)")
    return found


def set_weights(
    weight: nn.Parameter, name: str, distribution: Distribution, seed: int, scaled_for_k: float | None = None
) -> None:
    """Fill `weight`, named `name` in its model, with the values that `seed` gives it, in place."""
    drawn = draw_weights(weight.shape, distribution, stream(seed, "weights", name), scaled_for_k=scaled_for_k)
    with torch.no_grad():
        weight.copy_(drawn)


def masks_of(network: nn.Module) -> dict[str, Mask]:
    """The `Mask` modules of a supermask network by the name of their weight, in the model's order.

    Empty for a plain network.
    """
    return {chain[0].layer.name: chain[0] for chain in _mask_chains(network)}


def frozen_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights behind the masks, by name, in the model's order, each of its layer's shape."""
    return {chain[0].layer.name: chain.original for chain in _mask_chains(network)}


@torch.no_grad()
def current_masks(network: nn.Module) -> dict[str, Tensor]:
    """Each layer's mask as bool, by the name of its weight; for `sampled`, one fresh draw."""
    masks = masks_of(network)
    groups = {id(mask.group): mask.group for mask in masks.values() if mask.group is not None}
    try:
        for group in groups.values():
            group.hold()
        return {name: mask.mask() > 0.5 for name, mask in masks.items()}
    finally:
        for group in groups.values():
            group.release()


def _mask_chains(network: nn.Module) -> Iterator[Any]:
    """The parametrizations (torch's chains of them) that begin with a `Mask`."""
    for module in network.modules():
        if parametrize.is_parametrized(module):
            chains = module.parametrizations.values()  # type: ignore[operator]
            yield from (chain for chain in chains if isinstance(chain[0], Mask))


def _maskable(module: nn.Module) -> list[str]:
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [name for name in names if getattr(module, name) is not None]
    return []


@torch.no_grad()
def _freeze(model: nn.Module, masked: set[int], biases: Biases, norms: Norms) -> None:
    """Freeze every parameter, then set and release biases and norms as asked."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, _NORMS):
            for name, parameter in module.named_parameters(recurse=False):
                if norms == "unit":
                    parameter.fill_(0.0 if name == "bias" else 1.0)
                parameter.requires_grad_(norms == "trained")
        elif id(module) in masked:
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    if biases == "zero":
                        parameter.zero_()
                    parameter.requires_grad_(biases == "trained")


def _warn_of_single_weights(model: nn.Module, selection: Selection) -> None:
    if selection == "global":
        return
    masks = masks_of(model)
    single = [name for name, mask in masks.items() if mask.kept == 1 < mask.scores.numel()]
    if single and all(mask.selects_globally for mask in masks.values()):
        warnings.warn(f"k is so small that these layers keep one weight: {', '.join(single)}", stacklevel=3)


def _mask_type(method: Method | type[Mask]) -> type[Mask]:
    if isinstance(method, str):
        if method not in METHODS:
            raise choices_error("method", method, METHODS)
        return METHODS[method]
    if not (isinstance(method, type) and issubclass(method, Mask)):
        raise UserError(f"method: {method!r} is neither a name nor a subclass of Mask")
    return method
