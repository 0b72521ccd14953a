"""Images per second of the input pipeline on one core, against torchvision's transforms in a DataLoader.

`python -m benchmarks.pipeline`: crop, flip and normalisation of random images of CIFAR-10's shape; one
minute. tests/test_fast_data.py tests that both give the same bits for the same offsets.
"""

import math
import statistics
import sys

import torch

from benchmarks import step, straightforward
from benchmarks.measure import Row, compare, race, readable, report
from hiddenweights.images.dataset import Batches, Images

BATCH = 128


def run(device: str = "cpu") -> list[Row]:
    n = 40 * BATCH
    dataset = step.random_images(3, 32, n)
    loader = straightforward.loader(
        straightforward.PilImages(
            dataset.train.pixels, dataset.train.labels, dataset.mean, dataset.std, augment=True
        ),
        BATCH,
    )
    images = Images(dataset.train.pixels.to(device), dataset.train.labels.to(device))
    batches = Batches(images, dataset.mean, dataset.std)

    def theirs() -> None:
        for pixels, labels in loader:
            pixels.to(device), labels.to(device)

    def ours(augment: bool) -> None:
        for _ in batches.shuffled(BATCH, seed=0, epoch=0, augment=augment):
            pass

    times = race(
        {"torchvision": theirs, "ours": lambda: ours(True)}, rounds=9 if device == "cpu" else 3, device=device
    )
    rows = [compare(f"{n} images, crop + flip + normalise", times, "torchvision", "ours", "5x, aim 30x")]
    rows += [share_of_a_step(case, batches, device) for case in ("conv4", "resnet18")]
    report("pipeline" if device == "cpu" else "pipeline_gpu", rows, device)
    return rows


def share_of_a_step(case: str, batches: Batches, device: str) -> Row:
    """The additional time of a batch with augmentation, as a percentage of a bfloat16 step."""
    contestants = step.steps(case, device)

    def feed(augment: bool) -> None:
        for _ in batches.shuffled(BATCH, seed=0, epoch=0, augment=augment):
            pass

    times = race(
        {
            "plain": lambda: feed(False),
            "augmented": lambda: feed(True),
            "step": contestants["supermask bfloat16"],
        },
        rounds=3 if device == "cpu" else 30,
        device=device,
    )
    count = math.ceil(len(batches.images) / BATCH)
    extra = [(a - p) / count for a, p in zip(times["augmented"], times["plain"], strict=True)]
    share = statistics.median(100 * e / s for e, s in zip(extra, times["step"], strict=True))
    return Row(
        what=f"{case}: augmentation, % of a step",
        ratio=round(share, 3),
        goal="<= 3, aim 1",
        baseline=f"augmentation of a batch: {readable(statistics.median(extra))}",
        ours=f"a bfloat16 step: {readable(statistics.median(times['step']))}",
        rounds=len(extra),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(*sys.argv[1:])
