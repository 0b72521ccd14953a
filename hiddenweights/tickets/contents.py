"""The required content of a ticket file (docs/ticket.md), and the limits for reading one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiddenweights import own
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import flatten, from_dict
from hiddenweights.identity import Resolved, resolve
from hiddenweights.images.dataset import Dataset
from hiddenweights.masking.masks import METHODS, Biprop, kept_count
from hiddenweights.records import Record
from hiddenweights.tickets.layers import count, decode_layers, layer_shapes, text


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs and outputs of the network: (pixel / 255 - mean) / std per channel, to one logit per class."""

    channels: int
    image_size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self, dataset: Dataset) -> None:
        """Raise `UserError` if the network does not fit these images or their number of classes."""
        found = (dataset.channels, dataset.image_size, dataset.classes)
        if found != (self.channels, self.image_size, self.classes):
            raise UserError(
                f"data: has {found[0]} channels, {found[1]} pixels and {found[2]} classes; the ticket's"
                f" network takes {self.channels}, {self.image_size} and {self.classes}"
            )


def has_ticket(config: Resolved) -> bool:
    """Whether the method keeps the weights of the seed, so that a mask describes the network completely.

    For a method of the user only its network can tell (`Ticket.of`).
    """
    method = config.model.method
    return own.is_versioned(method) or (method in METHODS and not METHODS[method].redraws)


def parts(header: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a `Ticket` by name, from the header and the tensors of a file, both checked.

    Raises `UserError`, or a built-in exception if the header has another structure.
    """
    shapes = layer_shapes(header)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    # The tensors by kind, and the config.
    found: dict[str, dict[str, Tensor]] = {"mask": {}, "gain": {}, "state": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        found[part][rest] = tensor
    config = resolve(from_dict(header["config"]))
    if not has_ticket(config):
        raise UserError(f"model.method: {config.model.method!r} has no tickets")
    for value in flatten(config).values():
        if isinstance(value, str):
            text(value)
    # The gains of `biprop`, and the masks.
    gained = shapes if METHODS.get(config.model.method) is Biprop else {}
    same_tensors(
        {name: (torch.Size(), torch.float32) for name in gained},
        {name: (gain.shape, gain.dtype) for name, gain in found["gain"].items()},
    )
    counts = {name: count(header["layers"][name]["kept"], 0) for name in shapes}
    _check_counts(config, sizes, counts)
    if any(code.dtype != torch.uint8 for code in found["mask"].values()):
        raise ValueError("a mask's code is not of bytes")
    codes = {name: code.numpy().tobytes() for name, code in found["mask"].items()}
    masks = decode_layers(header, shapes, codes)
    return {
        "config": config,
        "inputs": _inputs(header["inputs"]),
        "masks": {name: torch.from_numpy(mask) for name, mask in masks.items()},
        "gains": found["gain"],
        "state": found["state"],
        "weights_checksum": text(header["weights_checksum"]),
        "record": _record(header["record"]),
        "versions": {text(name): text(value) for name, value in header["versions"].items()},
    }


def _check_counts(config: CellConfig, sizes: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Raise `UserError` if the masks do not keep the fraction k of the config."""
    k = config.model.k
    if k is None or config.model.method not in METHODS:  # sampled, or a method of the user: any fraction
        return
    if config.model.selection == "global":
        sizes, counts = {"all layers": sum(sizes.values())}, {"all layers": sum(counts.values())}
    for name, n in sizes.items():
        if counts[name] != kept_count(k, n):
            raise UserError(f"{name}: keeps {counts[name]} of {n} weights, but model.k is {k}")


def _inputs(data: Any) -> Inputs:
    channels, image_size, classes = (count(data[name]) for name in ("channels", "image_size", "classes"))
    mean, std = (tuple(float(value) for value in data[name]) for name in ("mean", "std"))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{channels} channels, but {len(mean)} means and {len(std)} deviations")
    return Inputs(channels, image_size, classes, mean, std)


def _record(data: dict[str, Any]) -> Record:
    count(data["epoch"])
    for name, value in data.items():
        text(name)
        if type(value) not in (int, float) and (name.endswith("_accuracy") or not text(value)):
            raise ValueError(f"{name}: {value!r} is not a number")
        if type(value) is int and abs(value) >= 2**64:
            raise ValueError(f"{name}: is too large a number")
    return data


def same_tensors(
    expected: Mapping[str, tuple[torch.Size, torch.dtype]],
    found: Mapping[str, tuple[torch.Size, torch.dtype]],
) -> None:
    """Raise `UserError` that names the first tensor that only one of network and ticket has."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            network, ticket = (
                f"{tuple(of[name][0])} {of[name][1]}" if name in of else "none" for of in (expected, found)
            )
            raise UserError(f"does not fit its network: {name!r} is {network} there, {ticket} in the ticket")
