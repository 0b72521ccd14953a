"""The class of a mask method, by its name: one of this package or of the user."""

import inspect

import torch
from torch import Tensor

from hiddenweights import own
from hiddenweights.errors import UserError
from hiddenweights.masking.masks import METHODS, Layer, Mask

_SHAPE = (6, 4)  # of the small layer on which a user's method is tried


def mask_type(method: str) -> type[Mask]:
    """The class of the mask method: a name of `METHODS`, or user code with its version.

    Raises `UserError` if the user's class is no subclass of `Mask`, or fails on a small layer.
    """
    if method in METHODS:
        return METHODS[method]
    found, name = own.code(method, "model.method"), own.plain(method)
    if not (isinstance(found, type) and issubclass(found, Mask)):
        kind = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
        raise UserError(f"model.method: {name} is {kind}, not a subclass of hiddenweights.Mask")
    try:
        inspect.signature(found).bind(torch.zeros(_SHAPE), 0.5, None)
    except TypeError as error:
        raise UserError(f"model.method: {name} cannot be called as (scores, k, layer): {error}") from error
    _try(found, name)
    return found


def _try(method: type[Mask], name: str) -> None:
    """Raise `UserError` unless a mask of this class works on a small layer."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        scores, weight = torch.linspace(-1.0, 1.0, 24).view(_SHAPE), torch.ones(_SHAPE)
        try:
            mask = method(scores, 0.5, Layer("tried", 0, "signed_constant", None))
            for call, made in (("mask()", mask.mask), ("forward(weight)", lambda: mask(weight))):
                found = made()
                if not isinstance(found, Tensor):
                    raise TypeError(f"{call} gives {type(found).__name__}")
                if (found.shape, found.dtype) != (weight.shape, weight.dtype):
                    raise ValueError(f"{call} gives {tuple(found.shape)} {found.dtype}")
            if any(p.requires_grad for p in mask.parameters()) and not found.requires_grad:
                raise ValueError("forward(weight) has no gradient in the scores")
        except Exception as error:  # user code may raise anything
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            where = f"a layer of shape {_SHAPE} {weight.dtype}"
            raise UserError(f"model.method: {name} fails on {where}: {line}") from error
