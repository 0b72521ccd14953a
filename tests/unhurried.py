"""A network of a user's own whose training takes time and no processor, where the environment asks for it."""

import os
import time

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
