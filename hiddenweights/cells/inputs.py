"""Checks of what a cell reads, before it is trained: data, network, and mask method."""

from typing import TYPE_CHECKING

from hiddenweights import own
from hiddenweights.config import DATASETS, METHODS, NETWORKS
from hiddenweights.identity import Resolved

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket


def check_inputs(config: Resolved, ticket: "Ticket | None" = None) -> list[str]:
    """Raise `UserError` if the data cannot be loaded or the network cannot be built. Imports torch.

    Returns what the user should see: a line about data that is not of this package, and one if the given
    precision is slow on this machine.
    """
    import torch

    from hiddenweights import models
    from hiddenweights.images.dataset import load_dataset, split
    from hiddenweights.training.build import build_cell_network, check_batch, computes_bfloat16, device_of

    dataset = load_dataset(config.data)
    images = len(split(dataset, config.data, config.seed_of("data")).train)
    model, finetune = config.model, config.model.method == "finetune"
    # networks of torchvision, of the user, and of tickets; mask methods of the user
    code = model.arch not in NETWORKS or model.method not in METHODS
    if ticket or (code and not finetune):
        network = build_cell_network(config, dataset, ticket)
        check_batch(network, min(images, config.optim.batch_size), dataset)
    elif not finetune:  # ours: the size of the images and the width decide
        with torch.random.fork_rng(devices=[]):
            network = models.NETWORKS[model.arch](
                dataset.channels, dataset.image_size, dataset.classes, model.width
            )
        check_batch(network, min(images, config.optim.batch_size), dataset)
    lines = []
    name = own.plain(config.data.name)
    if name not in DATASETS:
        shape = f"{dataset.channels}x{dataset.image_size}x{dataset.image_size}"
        folder = name.startswith("folder:")
        more = f"in {config.data.root}" if folder else f"of {shape}, digest {dataset.digest[:8]}"
        lines.append(
            f"{name}: {dataset.classes} classes, {len(dataset.train):,} training and"
            f" {len(dataset.test):,} test images {more}"
        )
    if config.train.precision == "bfloat16" and not computes_bfloat16(device_of(config.train.device)):
        lines.append(
            "train.precision: bfloat16 is emulated on this machine, which takes 2 to 20 times as long; "
            "float32 makes other cells"
        )
    return lines


def check_device(config: Resolved, ranks: int) -> None:
    """Raise `UserError` if this machine lacks the devices on which `ranks` processes train the cell.

    Imports torch.
    """
    from hiddenweights.training.build import device_of
    from hiddenweights.training.parallel import on_cuda

    device_of(config.train.device)
    if ranks > 1:
        on_cuda(config, ranks)


def check_code(config: Resolved) -> list[str]:
    """Raise `UserError` if the user's code cannot be imported, or gives no network or mask method.

    For a launch on a cluster: this machine may lack the data. Returns no lines. Imports torch.
    """
    from hiddenweights.models import own_network
    from hiddenweights.training.methods import mask_type

    if config.model.method not in METHODS:
        mask_type(config.model.method)
    if own.is_own(config.model.arch):
        own_network(config.model.arch, 10, config.model.width)  # the data knows how many classes there are
    if own.is_versioned(config.data.name):
        own.code(config.data.name, "data.name")
    return []
