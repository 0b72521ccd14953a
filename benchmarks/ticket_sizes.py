"""The size of tickets compared with the float32 state dict: ``python -m benchmarks.ticket_sizes``.

Masks are random; for the code, found masks look random, too (docs/ticket.md). The running statistics of
BatchNorm are random as well, which can only make a ticket larger. It takes a minute or two on one core.
"""

import math

import numpy as np
import torch

from hiddenweights.flat import unflatten
from hiddenweights.masking.supermask import weight_layers
from hiddenweights.models import build_network
from hiddenweights.tickets.contents import Inputs
from hiddenweights.tickets.ticket import Ticket

# Network, channels and side of its images, classes.
NETWORKS = [
    ("fc", 1, 28, 10),
    *((f"conv{depth}", 3, 32, 10) for depth in (2, 4, 6, 8)),
    *((f"resnet{depth}", 3, 32, 10) for depth in (18, 34, 50, 101)),
    *((f"torchvision/{name}", 3, 224, 1000) for name in ("resnet50", "resnet101", "wide_resnet50_2")),
]
KS = (0.1, 0.3, 0.5, 0.7, 0.9)


def ticket_of_random_masks(arch: str, channels: int, size: int, classes: int, k: float) -> tuple[Ticket, int]:
    """A ticket of the network with random masks, and the bytes of its float32 state dict."""
    draw = np.random.default_rng(0)
    with torch.device("meta"):
        network = build_network(arch, channels=channels, image_size=size, classes=classes)
    plain = network.state_dict()
    masks = {
        name: torch.from_numpy(draw.random(tuple(plain[name].shape), np.float32) < k)
        for _, _, name in weight_layers(network)
    }
    state = {
        name: torch.rand(value.shape)
        if name.endswith(("_mean", "_var"))
        else torch.zeros((), dtype=value.dtype)
        for name, value in plain.items()
        if name not in masks
    }
    config = unflatten({"model.arch": arch, "model.k": k, "data.name": "cifar10"})
    inputs = Inputs(channels, size, classes, (0.5,) * channels, (0.5,) * channels)
    ticket = Ticket(config, inputs, masks, {}, state, "0" * 32, {"epoch": 100, "test_accuracy": 0.5}, {})
    return ticket, sum(value.element_size() * math.prod(value.shape) for value in plain.values())


def main() -> None:
    print("| network | weights | state dict | " + " | ".join(f"k = {k}" for k in KS) + " |")
    print("|---|---:|---:|" + "---:|" * len(KS))
    for arch, channels, size, classes in NETWORKS:
        cells = []
        for k in KS:
            ticket, dense = ticket_of_random_masks(arch, channels, size, classes, k)
            content = len(ticket.to_bytes())
            cells.append(f"{content / 1e3:,.0f} kB (1/{dense / content:.0f})")
        n = sum(mask.numel() for mask in ticket.masks.values())
        print(f"| {arch} | {n:,} | {dense / 1e6:,.2f} MB | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
