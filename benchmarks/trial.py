"""One whole trial with its start and evaluation: `python -m benchmarks.trial`, about two minutes.

The quickstart's cell on scikit-learn's digits (Conv2 at width 0.25, 30 epochs, batch 64, one thread)
against the same network trained the straightforward way, each image through torchvision's transforms.
"""

import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

from benchmarks import straightforward
from benchmarks.measure import Row, compare, race, readable, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.images.dataset import Dataset, load_dataset, split
from hiddenweights.records import Record
from hiddenweights.training.train import Trainer


def run() -> list[Row]:
    """Ours against the straightforward script, on the CPU."""
    config = _config("digits", "conv2", 0.25, 30, 64, "cpu")
    dataset = load_dataset(config.data)
    contestants = {
        "straightforward": _straightforward(config, dataset, workers=0),
        "ours": lambda: _ours(config, dataset),
    }
    times = race(contestants, rounds=5)
    rows = [compare("conv2 on digits, 30 epochs", times, "straightforward", "ours", "")]
    report("trial_conv2", rows)
    return rows


def on_a_gpu(
    arch: str,
    dataset: Dataset,
    goals: tuple[str, str],
    device: str = "cuda",
    *,
    epochs: int = 100,
    width: float = 1.0,
    workers: int = 4,
) -> list[Row]:
    """Seconds of a trial of 100 epochs, from `epochs` of them, and the straightforward script's time over it.

    The script trains and evaluates one epoch with `workers` in its loaders. Our time includes building the
    network and recording the graph, but no imports. `goals`: for the seconds and for the ratio.
    """
    _ours(_config("cifar10", arch, width, 1, 128, device), dataset)  # compiles the kernels
    started = time.perf_counter()
    records = _ours(_config("cifar10", arch, width, epochs, 128, device), dataset)
    seconds = time.perf_counter() - started
    epoch = statistics.median(float(record["seconds"]) for record in records)
    whole = seconds + (100 - epochs) * epoch
    theirs = _straightforward(_config("cifar10", arch, width, 1, 128, device), dataset, workers)
    started = time.perf_counter()
    theirs()
    script = time.perf_counter() - started
    ours = f"{epochs} epochs: {readable(seconds)}; an epoch: {readable(epoch)}"
    return [
        Row(
            what=f"{arch}, 100 epochs: s",
            ratio=round(whole, 2),
            goal=goals[0],
            baseline="",
            ours=ours,
            rounds=1,
        ),
        Row(
            what=f"{arch}, 100 epochs: straightforward / ours",
            ratio=round(100 * script / whole, 2),
            goal=goals[1],
            baseline=f"one epoch, {workers} workers: {readable(script)}",
            ours=ours,
            rounds=1,
        ),
    ]


def _config(data: str, arch: str, width: float, epochs: int, batch: int, device: str) -> CellConfig:
    return CellConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name=data),
        optim=OptimConfig(batch_size=batch),
        train=TrainConfig(epochs=epochs, device=device),
    )


def _ours(config: CellConfig, dataset: Dataset) -> list[Record]:
    with mock.patch("hiddenweights.training.train.load_dataset", return_value=dataset):
        return list(Trainer(config).epochs())


def _straightforward(config: CellConfig, dataset: Dataset, workers: int) -> Callable[[], None]:
    """The same trial as a function, with images that are PIL images already."""
    device, batch, arch = config.train.device, config.optim.batch_size, config.model.arch
    assert batch is not None
    augment = config.data.name != "digits"
    parts = split(dataset, config.data, seed=0)
    pil = {
        part: straightforward.PilImages(
            images.pixels, images.labels, dataset.mean, dataset.std, augment and part == "train"
        )
        for part, images in (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
        if images is not None
    }

    def trial() -> None:
        model = straightforward.network(
            arch,
            channels=dataset.channels,
            image_size=dataset.image_size,
            classes=dataset.classes,
            width=config.model.width,
            k=0.5,
        ).to(device)
        step = straightforward.trainer(model)
        for _ in range(config.train.epochs):
            model.train()
            for images, labels in straightforward.loader(pil["train"], batch, workers):
                step(images.to(device), labels.to(device))
            for part in ("validation", "test"):
                straightforward.accuracy(model, straightforward.loader(pil[part], batch, workers), device)

    return trial


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
