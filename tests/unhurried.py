"""A user's network, whose training takes time and no processor if the environment asks for it, and data."""

import os
import time

import numpy as np
import torch
from torch import Tensor, nn

PAUSE = "HIDDENWEIGHTS_TEST_PAUSE"  # seconds before each step


class Unhurried(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(float(os.environ.get(PAUSE, "0")))
        result: Tensor = super().forward(x)
        return result


def network(num_classes: int) -> nn.Module:
    """For digits."""
    return Unhurried(
        nn.Flatten(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, num_classes, bias=False)
    )


def images() -> tuple[tuple[Tensor, Tensor], ...]:
    """As many as the digits, of their size, with the labels that a fixed linear network gives them."""
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (1797, 1, 8, 8), dtype=np.uint8)
    labels = ((pixels.reshape(-1, 64) - 128.0) @ numbers.standard_normal((64, 10))).argmax(1)
    train, test = slice(1438), slice(1438, None)
    given, wanted = torch.from_numpy(pixels), torch.from_numpy(labels)
    return (given[train], wanted[train]), (given[test], wanted[test])
