"""From a resolved config to the network of the cell at its start, and how its device computes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hiddenweights.config import NETWORKS, Arithmetic, Precision
from hiddenweights.errors import UserError
from hiddenweights.identity import Resolved
from hiddenweights.images.dataset import Dataset
from hiddenweights.masking.supermask import select_together, set_weights, supermask, weight_layers
from hiddenweights.models import build_network
from hiddenweights.tickets.ticket import Ticket


def device_of(name: str) -> torch.device:
    """The device that `train.device` names; `auto` is CUDA if there is any. Raises `UserError` otherwise."""
    there = torch.cuda.is_available()
    device = torch.device(("cuda" if there else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not there:
        raise UserError(f"train.device: {name!r}, but there is no such device; choices: auto, cpu")
    return device


def build_cell_network(config: Resolved, dataset: Dataset, ticket: Ticket | None = None) -> nn.Module:
    """The cell's network at its start, on the CPU: masked, or for `dense` with weights to train.

    For `finetune` it is the network of `ticket`, whose unkept weights are zero. Convolutions are
    channels_last in memory, as the images are: the fastest format on CPUs and GPUs.
    """
    model, weight_seed = config.model, config.seed_of("weights")
    if model.method == "finetune":
        if ticket is None:
            raise UserError(f"model.init_from: the ticket of cell {model.init_from} is needed")
        ticket.inputs.check(dataset)
        # The config's own word, never the ticket's: a network of the user's code is imported only if it
        # was named beside the ticket.
        return ticket.network(model.arch if ":" in model.arch else None)
    network = build_network(
        model.arch,
        channels=dataset.channels,
        image_size=dataset.image_size,
        classes=dataset.classes,
        width=model.width,
        seed=weight_seed,
    )
    if model.method == "dense":
        for owner, attribute, name in weight_layers(network):
            set_weights(getattr(owner, attribute), name, model.distribution, weight_seed)
    else:
        supermask(
            network,
            k=1.0 if model.k is None else model.k,
            method=model.method,
            distribution=model.distribution,
            scaled=model.scaled,
            selection=model.selection,
            weight_seed=weight_seed,
            score_seed=config.seed_of("scores"),
        )
        if ":" not in model.arch:  # which might recompute parts in the backward pass
            select_together(network)
    return network.to(memory_format=torch.channels_last)


def recordable(config: Resolved) -> bool:
    """Whether a CUDA graph can hold a step: it reads no value of the device, in any network of ours.

    What it draws (`sampled`) comes from torch's own generator, whose offset a graph moves on as a step does.
    """
    return config.model.arch in NETWORKS


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """What `precision` means on `device`; `auto` is bfloat16 where that is computed natively.

    Elsewhere it is emulated, in a step ten to twenty times as long. A torch below 2.11 does not say what
    a CPU computes: that is float32, then.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        features: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def hold_at_zero(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give the weights outside `masks` (bool, by name, of each weight's shape) no gradient.

    They are zero and stay so: neither weight decay nor the momentum of SGD or Adam moves a zero.
    """
    for owner, attribute, name in weight_layers(network):
        mask = masks[name]
        getattr(owner, attribute).register_hook(lambda gradient, mask=mask: gradient * mask)
