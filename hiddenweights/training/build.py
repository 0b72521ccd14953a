"""From a resolved config to the initial network of the cell, its device and its precision."""

import copy
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hiddenweights.config import METHODS, NETWORKS, SUBNETWORK, Arithmetic, Precision
from hiddenweights.errors import UserError
from hiddenweights.identity import Resolved, id_of, same_data, split_of
from hiddenweights.images.dataset import Dataset
from hiddenweights.masking.supermask import select_together, set_weights, supermask, weight_layers
from hiddenweights.models import build_network, channels_last
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.methods import mask_type

# The values of oneDNN's ONEDNN_MAX_CPU_ISA that exclude the instructions of bfloat16.
WITHOUT_BFLOAT16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip


def device_of(name: str) -> torch.device:
    """The device that `train.device` names; `auto` is CUDA if available. Raises `UserError` if missing."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        choices = ("auto", "cpu", *(f"cuda:{i}" for i in range(gpus)))
        raise UserError(f"train.device: {name!r}, but there is no such device; choices: {', '.join(choices)}")
    return device


def build_cell_network(config: Resolved, dataset: Dataset, ticket: Ticket | None = None) -> nn.Module:
    """The initial network of the cell, on the CPU: masked, or for `dense` with trainable weights.

    For `finetune` it is the network of `ticket`, whose dropped weights are zero; raises `UserError` if that
    is not what `config` names, or if its mask has seen validation images of `config`. The memory format of
    convolutions is channels_last, like that of the images: the fastest one on CPUs and GPUs.
    """
    model, weight_seed = config.model, config.seed_of("weights")
    if model.method == "finetune":
        if ticket is None:
            raise UserError(f"model.init_from: the ticket of cell {model.init_from} is needed")
        if (found := id_of(ticket.config)) != model.init_from:
            raise UserError(f"model.init_from: {model.init_from!r}, but the ticket is of cell {found}")
        _check_ticket(config, ticket)
        ticket.inputs.check(dataset)
        # From the config, never from the ticket: user code is imported only if the user named it
        # together with the ticket.
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
            method=mask_type(model.method),
            distribution=model.distribution,
            scaled=model.scaled,
            selection=model.selection,
            weight_seed=weight_seed,
            score_seed=config.seed_of("scores"),
        )
        if ":" not in model.arch:  # user code might recompute parts in the backward pass
            select_together(network)
    return channels_last(network)


def check_batch(network: nn.Module, images: int, dataset: Dataset) -> None:
    """Raise `UserError` if the network cannot be trained on batches of `images`, if that is a single one.

    BatchNorm has no variance for one value per channel. (That networks take more images is checked when they
    are built; `dataset.shares` leaves out a last batch of a single image.)
    """
    if images > 1:
        return
    tried = copy.deepcopy(network).train()  # BatchNorm has state
    image = torch.zeros(1, dataset.channels, dataset.image_size, dataset.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried(image)
    except ValueError as error:
        raise UserError(f"optim.batch_size: the network cannot be trained on one image: {error}") from error


def _check_ticket(config: Resolved, ticket: Ticket) -> None:
    """Raise `UserError` if config and ticket name different networks, or hold out different images.

    The mask was found on the images that its cell did not hold out. For the same data they would leak into
    the validation accuracy.
    """
    found = ticket.config
    for name in SUBNETWORK:
        value, tickets = getattr(config.model, name), getattr(found.model, name)
        if value != tickets:
            raise UserError(
                f"model.{name}: {value!r}, but the ticket of cell {config.model.init_from} has {tickets!r}"
            )
    if config.data.protocol == "paper" or not same_data(config, found):
        return
    seen = split_of(found)
    for name, value in split_of(config).items():
        if value != seen[name]:
            raise UserError(
                f"{name}: {value!r}, but the ticket has {seen[name]!r}: its mask was found on images that"
                " would be validation images; use its value, or data.protocol 'paper'"
            )


def recordable(config: Resolved) -> bool:
    """Whether a training step can be recorded in a CUDA graph: it must copy nothing back to the CPU.

    This is only known of our own architectures and methods. Random numbers (`sampled`) are allowed: they come
    from torch's generator, whose offset a graph advances as a step does.
    """
    return config.model.arch in NETWORKS and config.model.method in METHODS


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """The precision that `precision` means on `device`; `auto` is bfloat16 if it is native, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is native on `device`. If emulated, a step takes 2 to 20 times as long as in float32.

    Torch below 2.11 does not report the capabilities of a CPU, which then counts as one without bfloat16. A
    limit set for oneDNN, which computes the layers, counts.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return native and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16


def hold_at_zero(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give the weights outside `masks` (bool, by name, each with the shape of its weight) no gradient.

    They are zero and remain zero, because neither weight decay nor momentum changes a zero. Weights that the
    network itself does not train stay as they are.
    """
    for owner, attribute, name in weight_layers(network):
        weight, mask = getattr(owner, attribute), masks[name]
        if weight.requires_grad:
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
