"""Networks as plain modules that know nothing of masks, built by name."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hiddenweights import own
from hiddenweights.errors import UserError, choices_error
from hiddenweights.models.conv import conv
from hiddenweights.models.plain import fc, linear
from hiddenweights.models.resnet import resnet
from hiddenweights.models.subsampled import subsample_first

# Each builder takes (channels, image side, classes, width).
NETWORKS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "linear": linear,
    "fc": fc,
    "conv2": lambda *args: conv(2, *args),
    "conv4": lambda *args: conv(4, *args),
    "conv6": lambda *args: conv(6, *args),
    "conv8": lambda *args: conv(8, *args),
    "resnet18": lambda *args: resnet(18, *args),
    "resnet34": lambda *args: resnet(34, *args),
    "resnet50": lambda *args: resnet(50, *args),
    "resnet101": lambda *args: resnet(101, *args),
}

__all__ = ["NETWORKS", "build_network", "channels_last"]


def build_network(
    arch: str, *, channels: int, image_size: int, classes: int, width: float = 1.0, seed: int = 0
) -> nn.Module:
    """The network `arch` for float images (batch, channels, image_size, image_size) -> (batch, classes).

    `arch` is a name of `NETWORKS`; ``torchvision/NAME`` for a constructor of `torchvision.models`; or
    ``FILE.py:FUNCTION`` or ``module:FUNCTION`` for your own, called as ``FUNCTION(num_classes=classes)``.
    `seed` is the seed of the constructors' own initialisation, which `supermask` replaces for the weights
    that it masks.

    Raises `UserError` for an unknown name, a width that the network does not support, or a network that
    does not turn such images into one logit per class.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch.startswith("torchvision/"):
            network = _from_torchvision(arch.removeprefix("torchvision/"), image_size, classes, width)
        elif ":" in arch:
            network = own_network(arch, classes, width)
        elif arch in NETWORKS:
            network = NETWORKS[arch](channels, image_size, classes, width)
        else:
            raise choices_error("model.arch", arch, (*NETWORKS, "torchvision/NAME", "FILE.py:FUNCTION"))
        subsample_first(network)
        _check_output(network, arch, (2, channels, image_size, image_size), classes)
    return network


def _from_torchvision(name: str, image_size: int, classes: int, width: float) -> nn.Module:
    import torchvision  # here, because the import is slow

    from hiddenweights.models.torchvision_resnet import torchvision_resnet

    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise choices_error("model.arch", f"torchvision/{name}", [f"torchvision/{other}" for other in known])
    if width == 1:
        sized = {"image_size": image_size} if name.startswith("vit_") else {}  # fixed when built
        try:
            network: nn.Module = torchvision.models.get_model(name, num_classes=classes, **sized)
        except Exception as error:  # vit asserts
            raise UserError(
                f"model.arch: torchvision/{name} takes no images of {image_size} pixels: {error}"
            ) from error
        return network
    return torchvision_resnet(name, classes, width)


def own_network(path: str, classes: int, width: float) -> nn.Module:
    """The user's network `path` (FILE.py:FUNCTION with its version, or module:FUNCTION).

    Raises `UserError` if it cannot be imported or called, or gives no network.
    """
    field = f"model.arch: {path!r}"
    constructor = own.code(path, field) if own.is_versioned(path) else own.load(path, field)
    if width != 1:
        raise UserError(f"model.width: {width!r}, but only our networks and torchvision's ResNets scale")
    try:
        network: Any = constructor(num_classes=classes)
    except Exception as error:  # user code may raise anything
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"model.arch: {path!r} fails with num_classes={classes}: {line}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.arch: {path!r} returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """Store the tensors of four dimensions (`network.to` would fail for those of 5) in this memory format."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


@torch.no_grad()
def _check_output(network: nn.Module, arch: str, shape: tuple[int, int, int, int], classes: int) -> None:
    """Run `network` once in evaluation mode, and a copy of it (BatchNorm has state) in training mode."""
    for training in (False, True):
        try:
            tried = copy.deepcopy(network) if training else network
            output = tried.train(training)(torch.zeros(shape))
        except Exception as error:
            raise UserError(
                f"model.arch: {arch!r} does not take images of shape {shape[1:]}: {error}"
            ) from error
        if not isinstance(output, torch.Tensor) or tuple(output.shape) != (shape[0], classes):
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            mode = "training" if training else "evaluation"
            raise UserError(
                f"model.arch: {arch!r} in {mode} gives {got} for {shape[0]} images,"
                f" not ({shape[0]}, {classes})"
            )
    network.train()
