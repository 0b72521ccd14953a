"""A whole training step: supermask against dense, and against the straightforward implementation.

`python -m benchmarks.step [conv4|resnet18|digits]`: about 1, 2 and 1 minutes on one CPU thread.
Images are random, of CIFAR-10's shape, or of digits'.
"""

import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks import straightforward
from benchmarks.measure import Row, compare, race, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, Precision, TrainConfig
from hiddenweights.images.dataset import Dataset, Images
from hiddenweights.training.cuda_graph import WARM_UP
from hiddenweights.training.train import Trainer

# Name: architecture, width, (channels, side) of the images, batch, rounds, goal against dense.
CASES = {
    "conv4": ("conv4", 1.0, (3, 32), 128, 7, "<= 1.10"),
    "resnet18": ("resnet18", 1.0, (3, 32), 128, 3, "<= 1.05"),
    "digits": ("conv2", 0.25, (1, 8), 64, 200, ""),
}


def random_images(channels: int, side: int, n: int = 512, test: int | None = None) -> Dataset:
    """Random pixels in CIFAR-10's or digits' shape: `n` training images; `test` others or the same."""
    parts = [_random_images(n, channels, side)]
    parts.append(parts[0] if test is None else _random_images(test, channels, side))
    return Dataset(parts[0], parts[1], 10, (0.5,) * channels, (0.25,) * channels)


def _random_images(n: int, channels: int, side: int) -> Images:
    pixels = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8)
    return Images(pixels.contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (n,)))


def built(config: CellConfig, dataset: Dataset) -> Trainer:
    """The cell's trainer over `dataset`, with its network in training mode."""
    with mock.patch("hiddenweights.training.train.load_dataset", return_value=dataset):
        trainer = Trainer(config)
    trainer.network.train()
    return trainer


def batches(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of the first epoch, without augmentation."""
    size = trainer.config.optim.batch_size
    return trainer.train_batches.shuffled(size, seed=0, epoch=0, augment=False)


def our_step(config: CellConfig, dataset: Dataset, eager: bool = False) -> Callable[[], Tensor]:
    """The trainer's own step on one batch from the input pipeline.

    On a GPU the step has been recorded, unless `eager` is set.
    """
    trainer = built(config, dataset)
    images, labels = next(batches(trainer))
    step = trainer.eager_step if eager else trainer.step
    for _ in range(WARM_UP + 1 if trainer.device.type == "cuda" else 0):
        step(images, labels)
    return lambda: step(images, labels)


def steps(case: str, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """The contestants of `case` by name. Each takes one step on one batch."""
    arch, width, (channels, side), batch, _, _ = CASES[case]
    dataset = random_images(channels, side)
    contestants: dict[str, Callable[[], object]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        for method in ("dense", "edge_popup"):
            config = CellConfig(
                model=ModelConfig(arch=arch, width=width, method=method),  # type: ignore[arg-type]
                data=DataConfig(name="cifar10"),
                optim=OptimConfig(batch_size=batch),
                train=TrainConfig(precision=precision, device=device),
            )
            name = f"{'dense' if method == 'dense' else 'supermask'} {precision}"
            contestants[name] = our_step(config, dataset)
            if device == "cuda":
                contestants[f"{name}, eager"] = our_step(config, dataset, eager=True)
    model = straightforward.network(
        arch, channels=channels, image_size=side, classes=10, width=width, k=0.5
    ).to(device)
    step = straightforward.trainer(model)
    images, labels = torch.randn(batch, channels, side, side, device=device), torch.randint(0, 10, (batch,))
    labels = labels.to(device)
    return {"straightforward": lambda: step(images, labels)} | contestants


def run(case: str, device: str = "cpu") -> list[Row]:
    *_, rounds, goal = CASES[case]
    rounds, repeats = (rounds, 1) if device == "cpu" else (10, 20)
    times = race(steps(case, device), rounds=rounds, repeats=repeats, device=device)
    names = ["float32", "bfloat16", *(("float32, eager", "bfloat16, eager") if device == "cuda" else ())]
    rows = [
        compare(f"{case}: supermask / dense, {p}", times, f"supermask {p}", f"dense {p}", goal) for p in names
    ]
    rows += [
        compare(f"{case}: straightforward / ours, {p}", times, "straightforward", f"supermask {p}", aim)
        for p, aim in (("float32", ""), ("bfloat16", "2.0x, aim 2.8x" if case != "digits" else ""))
    ]
    if device == "cuda":
        rows.append(
            compare(f"{case}: graph, gain", times, "supermask bfloat16, eager", "supermask bfloat16", "")
        )
    report(f"step_{case}" if device == "cpu" else f"step_{case}_gpu", rows, device)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        run(case)
