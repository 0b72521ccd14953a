"""Communication between the processes that train one cell together: sums of gradients, and checks."""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiddenweights.errors import RankDied

# Longer than the bookkeeping of any epoch. A dead process is noticed in another way (`parallel`).
TIMEOUT = datetime.timedelta(hours=1)


class Ranks:
    """Process `rank` of `count` that train a network together, each on its share of every batch.

    Each of them has the whole network and takes every step. All of them must call every method except the
    constructor, in the same order. A method raises `RankDied` if one of them has died.
    """

    def __init__(self, rank: int, count: int, meeting: Path, cuda: bool) -> None:
        """Join the others through the file `meeting` on this machine. `cuda`: process i uses GPU i."""
        self.rank, self.count, self.cuda = rank, count, cuda
        if cuda:
            torch.cuda.set_device(rank)
        store = dist.FileStore(str(meeting), count)  # type: ignore[attr-defined]
        with _one_of_them_died():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store, rank=rank, world_size=count, timeout=TIMEOUT,
            )  # fmt: skip

    def average_gradients(self, parameters: Sequence[nn.Parameter], images: int) -> None:
        """Replace the gradients by those of the whole batch, of which this process had `images` images.

        Each gradient is the mean over the images of a process, or None if the process had none.
        """
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        one = gradients[0].new_ones(1)  # will be the number of images of the whole batch
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), one]).mul_(images)
        self.sum(flat)
        flat.div_(flat[-1].clone())
        parts = flat[:-1].split([gradient.numel() for gradient in gradients])
        for parameter, gradient, part in zip(parameters, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(part.view_as(gradient))

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over the processes."""
        with _one_of_them_died():
            dist.all_reduce(tensor)

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of the first process to all: the running statistics of BatchNorm."""
        with _one_of_them_died():
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """The `value` (small and plain) of every process, in the order of their ranks."""
        values = [None] * self.count
        with _one_of_them_died():
            dist.all_gather_object(values, value)
        return values

    def check_same(self, what: str, digest: str) -> None:
        """Raise RuntimeError in all processes if `digest` differs between them."""
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            raise RuntimeError(f"{what} differ between the processes of this cell: {', '.join(digests)}")


@contextlib.contextmanager
def _one_of_them_died() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankDied(f"a process of this cell does not answer: {error}") from error
