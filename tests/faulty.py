"""Networks whose training fails, each in its own way."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MARK = "HIDDENWEIGHTS_TEST_MARK"  # names a file that exists once memory was short


def greedy(num_classes: int) -> nn.Module:
    """A network that finds no memory the first time that it is trained."""
    return Faulty(_without_memory, num_classes)


def raises(num_classes: int) -> nn.Module:
    """A network that cannot be trained."""
    return Faulty(_unlucky, num_classes)


def hangs(num_classes: int) -> nn.Module:
    """A network whose training never ends."""
    return Faulty(lambda: time.sleep(3600), num_classes)


class Faulty(nn.Sequential):
    def __init__(self, then: Callable[[], None], num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes, bias=False))
        self._then = then

    def forward(self, x: Any) -> Any:
        if torch.is_grad_enabled():  # in training, and not where the network is only looked at
            self._then()
        return super().forward(x)


def _without_memory() -> None:
    with contextlib.suppress(FileExistsError), open(os.environ[MARK], "x"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def _unlucky() -> None:
    raise ArithmeticError("an unlucky number")
