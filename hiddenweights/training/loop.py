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
    """One pass over `batches` of (images, labels): mean loss, accuracy, and number of images.

    `ranks`: the processes that each have a share of every batch.
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
    """One optimiser step (none if nothing is trained). Returns (sum of losses, correct), shape (2,).

    `images` are normalised, float32 (batch, channels, size, size), `labels` int64 (batch,). `precision` is
    that of the network, `smoothing` the label smoothing. Does not wait for the device.
    """
    totals = torch.zeros(2, device=images.device)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    if len(labels):  # with several processes, the share of the last batch may be empty
        # Forward pass: each layer computes with weight * mask(scores).
        with torch.set_grad_enabled(optimizer is not None):
            logits, loss = forward(network, images, labels, precision, smoothing)
        # Backward pass: straight through the mask, to every score.
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
    """(mean loss, accuracy) of `network` over all `batches`. Puts the network in evaluation mode.

    `ranks`: the processes that each have some of the batches.
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
    """Logits (batch, classes) in the given precision, and the mean loss of the batch in float32."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = network(images)
    return logits, F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def _tally(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    correct = (logits.argmax(1) == labels).count_nonzero()
    return torch.stack([loss.detach() * len(labels), correct])


@contextlib.contextmanager
def seeded(seed: int, purpose: str, epoch: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators with (seed, purpose, epoch) inside the block, and restore them afterwards.

    Sampled masks and dropout draw from these generators. With this, an epoch repeats exactly even if the
    earlier epochs ran in another process.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        derived = int.from_bytes(digest[:7], "little")
        # Not `torch.manual_seed`: without a GPU it takes 1 ms to store a traceback for a later error.
        torch.default_generator.manual_seed(derived)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(derived)
        yield
