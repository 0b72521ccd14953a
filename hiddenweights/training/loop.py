"""The training loop: one step, one epoch, one evaluation, as plain functions."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenweights.config import Arithmetic
from hiddenweights.images.dataset import Batches
from hiddenweights.images.stream import StreamedBatches
from hiddenweights.training.cuda_graph import Step
from hiddenweights.training.ranks import Ranks

EVALUATION_BATCH = 1000


def train_epoch(
    step: Step, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, ranks: Ranks | None = None
) -> tuple[float, float, int]:
    """One pass over `batches` of (images, labels): the mean loss, the accuracy and the number of images.

    `ranks`: the processes that have a share of every batch each.
    """
    totals, images_seen = torch.zeros(2, device=device), 0
    for images, labels in batches:
        totals += step(images, labels)
        images_seen += len(labels)
    if ranks:
        images_seen = sum(ranks.gather(images_seen))
        ranks.sum(totals)
    loss, correct = totals.tolist()  # once per epoch, because the CPU waits for the device here
    return loss / images_seen, correct / images_seen, images_seen


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    images: Tensor,
    labels: Tensor,
    precision: Arithmetic,
    smoothing: float,
    ranks: Ranks | None = None,
) -> Tensor:
    """One optimiser step (none if there is nothing to learn); returns (sum of losses, correct), shape (2,).

    `images` are normalised, float32 (batch, channels, size, size), `labels` int64 (batch,). `precision` is
    the arithmetic of the network, `smoothing` the label smoothing. Waits for no result of the device.
    """
    totals = torch.zeros(2, device=images.device)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    if len(labels):  # one of several processes may have none of the last batch
        # Forward: each layer computes with weight * mask(scores).
        with torch.set_grad_enabled(optimizer is not None):
            logits, loss = forward(network, images, labels, precision, smoothing)
        # Backward: straight through the mask, to every score.
        if optimizer is not None:
            loss.backward()
        totals = _tally(loss, logits, labels)
    if optimizer is not None:
        if ranks:
            learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            ranks.average_gradients(learnt, len(labels))
        optimizer.step()
    return totals


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Batches | StreamedBatches,
    precision: Arithmetic = "float32",
    ranks: Ranks | None = None,
) -> tuple[float, float]:
    """(mean loss, accuracy) of `network`, put in evaluation mode, over all of `batches`, on its device.

    `ranks`: the processes that have some of the batches each.
    """
    network.eval()
    totals = torch.zeros(2, device=batches.images.labels.device)
    for images, labels in batches.in_order(EVALUATION_BATCH):
        logits, loss = forward(network, images, labels, precision)
        totals += _tally(loss, logits, labels)
    if ranks:
        ranks.sum(totals)
    loss_sum, correct = totals.tolist()
    return loss_sum / len(batches.images), correct / len(batches.images)


def forward(
    network: nn.Module, images: Tensor, labels: Tensor, precision: Arithmetic, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits (batch, classes) in the precision asked for, and the batch's mean loss, float32."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = network(images)
    return logits, F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def _tally(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    correct = (logits.argmax(1) == labels).count_nonzero()
    return torch.stack([loss.detach() * len(labels), correct])


@contextlib.contextmanager
def seeded(seed: int, purpose: str, epoch: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers on `device` as a function of (seed, purpose, epoch); as before outside.

    For what draws from torch's own generators: sampled masks, dropout. So an epoch repeats whether or
    not the ones before it ran in this process.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        derived = int.from_bytes(digest[:7], "little")
        # Not `torch.manual_seed`: for devices that are not there it keeps a traceback, in 1 ms.
        torch.default_generator.manual_seed(derived)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(derived)
        yield
