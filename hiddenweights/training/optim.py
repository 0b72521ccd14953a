"""Optimiser and learning-rate schedule from the config."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hiddenweights.identity import ResolvedOptim

# Methods that torch wraps for torch.compile. The wrappers import torch._dynamo, which takes a third of the
# time until a process trains.
WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def _unwrapped(optimizer: type[torch.optim.Optimizer]) -> Any:
    """A subclass of `optimizer` that does the same without these wrappers. It is not for `torch.compile`."""
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in WRAPPED}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**methods, "step": step})


_SGD: type[torch.optim.SGD] = _unwrapped(torch.optim.SGD)
_Adam: type[torch.optim.Adam] = _unwrapped(torch.optim.Adam)


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: ResolvedOptim, device: torch.device
) -> torch.optim.Optimizer:
    """SGD (without Nesterov momentum) or Adam over `parameters`, on `device`.

    The learning rate is a float32 tensor () on `device`, so that a replayed CUDA graph reads its new value.
    Adam's number of steps is a tensor on `device`, too (`capturable`). This makes no difference on a CPU.
    """
    lr, decay = torch.tensor(config.lr, device=device), config.weight_decay
    if config.optimizer == "adam":  # fused: one pass over the parameters instead of several
        return _Adam(parameters, lr=lr, weight_decay=decay, fused=True, capturable=True)
    return _SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the optimiser, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def learning_rate(config: ResolvedOptim, epoch: int, epochs: int) -> float:
    """The learning rate of epoch number `epoch` (from 0) of `epochs`; it changes once per epoch.

    Linear warm-up lr * (e + 1) / W for W epochs, then constant, or a cosine over the epochs after the
    warm-up: lr / 2 * (1 + cos(pi * (e - W) / (E - W))).
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    done = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return config.lr / 2 * (1 + math.cos(math.pi * done))
