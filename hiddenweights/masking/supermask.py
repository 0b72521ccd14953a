"""`supermask(model)` turns any `nn.Module` into a frozen random network with a learnable mask per layer."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hiddenweights.config import Distribution, Method, Selection
from hiddenweights.errors import UserError, choices_error
from hiddenweights.masking.distributions import DISTRIBUTIONS
from hiddenweights.masking.masks import (
    METHODS,
    BatchedSelection,
    EdgePopup,
    GlobalSelection,
    Layer,
    Mask,
    Sampled,
)
from hiddenweights.masking.rng import stream
from hiddenweights.masking.weights import draw_scores, draw_weights

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

    The masks cover the weights of every Linear, convolution and recurrent (RNN, GRU, LSTM) layer, including
    the first and the last, and the input projections of `nn.MultiheadAttention`. The scores become the only
    trainable parameters. `model` remains the same module; its `weight` attributes now return the effective
    (masked) weights. Paper: Ramanujan et al. 2020, section 3. Any other parameter (an embedding, a class
    token) is frozen at its present value.

    Args:
        model: the module, changed in place.
        k: fraction of weights kept, in (0, 1].
        method: a name of `METHODS`, or a subclass of `Mask`.
        distribution: distribution of the frozen weights. None keeps the present values of the model.
        scaled: multiply the weights' standard deviation by sqrt(1/k). Needs a distribution, and a method that
            keeps the fraction k (not `sampled`).
        selection: keep the top k of each layer, or of all masked weights together.
        biases: "zero" (the paper's networks have none), "frozen" at their present values, or "trained".
        norms: the affine parameters of normalisation layers: "unit" (frozen at weight 1 and bias 0, like
            the paper's non-affine BatchNorm) or "trained".
        weight_seed: seed of the weights. The draws of a layer depend only on the seed and its name.
        score_seed: seed of the scores, likewise.

    Raises:
        UserError: the model has no weight that a mask can cover, or one that `weight_layers` refuses; k lies
            outside (0, 1]; a choice is unknown; a combination has no meaning. The model is then unchanged.

    Warns:
        UserWarning: k is so small that some layers keep a single weight, or less than 90% of the parameters
            have a mask (an embedding, say, has none). The warning names the layers.
    """
    mask_type = _mask_type(method)
    _check(mask_type, k, distribution, scaled, selection, biases, norms)
    # Freeze all parameters; then draw weights and scores and attach a mask to each weight.
    layers = weight_layers(model)
    _warn_of_the_unmasked(model, layers)
    _freeze(model, {id(owner) for owner, _, _ in layers}, biases, norms)
    for owner, attribute, name in layers:
        layer = Layer(name, weight_seed, distribution, k if scaled else None)
        _attach(owner, attribute, layer, mask_type, k, score_seed)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            _forget_flat_weights(module)
            module.register_forward_hook(_forget_flat_weights, always_call=True)
    _warn_of_single_weights(model, selection)
    if selection == "global":
        _select_globally(model, k)
    return model


def _check(
    mask_type: type[Mask],
    k: float,
    distribution: str | None,
    scaled: bool,
    selection: str,
    biases: str,
    norms: str,
) -> None:
    """Check the arguments of `supermask`, before the model is changed."""
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
    name = mask_type.__name__
    if selection == "global" and not mask_type.selects_globally:
        raise UserError(f"selection: 'global' has no meaning for {name}, which chooses no top k")
    if mask_type.redraws and distribution is None:
        raise UserError(f"distribution: None, but {name} draws new weights and needs one")
    if scaled and distribution is None:
        raise UserError("scaled: True, but with distribution None the weights keep their values")
    if scaled and issubclass(mask_type, Sampled):
        raise UserError(f"scaled: True needs a given k, but {name} learns the fraction of weights kept")


def _attach(
    owner: nn.Module, attribute: str, layer: Layer, mask_type: type[Mask], k: float, score_seed: int
) -> None:
    """Draw the weights and the scores of one layer, and register its mask."""
    weight: nn.Parameter = getattr(owner, attribute)
    if layer.distribution is not None:
        set_weights(weight, layer.name, layer.distribution, layer.seed, layer.scaled_for_k)
    scores = draw_scores(weight.shape, stream(score_seed, "scores", layer.name)).to(weight.device)
    # unsafe=True skips torch's trial run of the mask, which takes time and, for `sampled`, random numbers
    parametrize.register_parametrization(owner, attribute, mask_type(scores, k, layer), unsafe=True)


def _select_globally(model: nn.Module, k: float) -> None:
    """Let the masks share one selection per forward pass."""
    masks = [*masks_of(model).values()]
    group = GlobalSelection(masks, k)
    for mask in masks:
        mask.group = group
    model.register_forward_pre_hook(group.hold)
    model.register_forward_hook(group.release, always_call=True)


def select_together(network: nn.Module) -> None:
    """Compute all masked weights of a supermask `network` in one call before each forward pass.

    The results are the same; a step of small networks takes about 15% less time. Do not use it with
    activation checkpointing (`torch.utils.checkpoint`), which runs submodules without a forward pass of the
    whole network. No effect for global selection and for methods other than edge-popup.
    """
    chains = list(_mask_chains(network))
    kinds = {(type(chain[0]).forward, type(chain[0]).mask) for chain in chains}
    if kinds == {(EdgePopup.forward, Mask.mask)} and all(chain[0].group is None for chain in chains):
        together = BatchedSelection(chains)
        network.register_forward_pre_hook(together.hold)
        network.register_forward_hook(together.release, always_call=True)


def weight_layers(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(owner, attribute, dotted name) of every weight that a mask can cover, in the order of the model.

    Raises `UserError` if there is none, if one is already parametrized or computed from another parameter
    (as by `weight_norm`), if one belongs to a lazy layer and has no shape yet, if one has no elements, or if
    one is shared with another module (an embedding, say).
    """
    found: list[tuple[nn.Module, str, str]] = []
    names: dict[int, list[str]] = {}  # all names of each parameter
    for path, module in model.named_modules():  # a module that is used twice comes once
        for name, parameter in module.named_parameters(path, recurse=False):
            names.setdefault(id(parameter), []).append(name)
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(f"model: layer {path!r} is parametrized already")
        for attribute in _maskable(module):
            name, weight = f"{path}.{attribute}" if path else attribute, getattr(module, attribute)
            if not isinstance(weight, nn.Parameter):
                raise UserError(f"model: {name!r} is no parameter, but computed from one; remove that first")
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise UserError(f"model: {name!r} has no shape yet; call the model once before it is masked")
            if not weight.numel():
                raise UserError(f"model: {name!r} has no elements: its shape is {tuple(weight.shape)}")
            others = [other for other in names[id(weight)] if other != name]
            if others:
                raise UserError(
                    f"model: {name!r} is the same tensor as {others[0]!r}; shared weights have no mask"
                )
            found.append((module, attribute, name))
    if not found:
        raise UserError(f"model: {type(model).__name__} has no weight that a mask can cover (Linear, Conv)")
    return found


def set_weights(
    weight: nn.Parameter, name: str, distribution: Distribution, seed: int, scaled_for_k: float | None = None
) -> None:
    """Fill `weight` in place with the values that `seed` gives to a layer with this `name`."""
    drawn = draw_weights(weight.shape, distribution, stream(seed, "weights", name), scaled_for_k=scaled_for_k)
    with torch.no_grad():
        weight.copy_(drawn)


def masks_of(network: nn.Module) -> dict[str, Mask]:
    """The `Mask` modules of a supermask network by the names of their weights, in the order of the model.

    Empty for a plain network.
    """
    return {chain[0].layer.name: chain[0] for chain in _mask_chains(network)}


def frozen_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights behind the masks by name, in the order of the model. Each has the shape of its layer."""
    return {chain[0].layer.name: chain.original for chain in _mask_chains(network)}


@torch.no_grad()
def current_masks(network: nn.Module) -> dict[str, Tensor]:
    """The mask of each layer as bool, by the name of its weight. For `sampled`: one new draw."""
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
    """The parametrizations (torch's lists of them) whose first entry is a `Mask`."""
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
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]
    return []


@torch.no_grad()
def _freeze(model: nn.Module, masked: set[int], biases: Biases, norms: Norms) -> None:
    """Freeze every parameter, then set biases and norms, and make them trainable if asked."""
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


def _forget_flat_weights(module: nn.RNNBase, *_: Any) -> None:
    """A hook after each forward pass, so that the next one reads the masked weights again.

    Torch keeps a list of the weights of a recurrent layer. With masks they are computed tensors. As long as
    the list holds them, the network cannot be copied and their memory is not freed.
    """
    module._flat_weights = [None for _ in module._flat_weights_names]


def _warn_of_the_unmasked(model: nn.Module, layers: list[tuple[nn.Module, str, str]]) -> None:
    """Warn if a tenth or more of the parameters is frozen without a mask.

    Biases of masked layers and parameters of normalisation layers do not count, because `biases` and `norms`
    determine them.
    """
    owners = {id(owner) for owner, _, _ in layers}
    masked = sum(getattr(owner, attribute).numel() for owner, attribute, _ in layers)
    frozen: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, _NORMS) and id(module) not in owners:
            count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            if count:
                frozen[f"{path or 'the model itself'} ({type(module).__name__})"] = count
    if sum(frozen.values()) * 9 > masked:
        share = masked / (masked + sum(frozen.values()))
        largest = sorted(frozen, key=lambda name: -frozen[name])[:5]
        more = f" and {len(frozen) - 5} more" if len(frozen) > 5 else ""
        warnings.warn(
            f"only {share:.1%} of the parameters have a mask; these are frozen without a mask:"
            f" {', '.join(largest)}{more}",
            stacklevel=3,
        )


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
