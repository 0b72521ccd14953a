"""Compare the learning curves of the fast code and of a plain trainer: `python -m benchmarks.curves`, 30 min.

Test accuracy after every epoch, ours against that of the straightforward script, over five seeds. Both share
weights, scores and splits, but not the order of the images. Conv2 at width 0.25 on digits and, if the
environment variable HIDDENWEIGHTS_DATA names the folder of CIFAR-10, Conv4 on 10,000 of its images.
"""

import os
import statistics

import torch

from benchmarks import straightforward
from benchmarks.measure import Row, difference, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.images.dataset import load_dataset, split
from hiddenweights.training.train import Trainer

Curve = list[float]


def curves(arch: str, data: DataConfig, batch: int, epochs: int, seed: int) -> tuple[Curve, Curve]:
    """Test accuracies by epoch: (plain, ours)."""
    config = CellConfig(
        model=ModelConfig(arch=arch, width=0.25),
        data=data,
        optim=OptimConfig(batch_size=batch, schedule="constant"),  # the plain trainer's
        train=TrainConfig(epochs=epochs, device="cpu"),
        seed=seed,
    )
    ours = [float(record["test_accuracy"]) for record in Trainer(config).epochs()]
    return _plain_curve(config, batch), ours


def _plain_curve(config: CellConfig, batch: int) -> Curve:
    torch.manual_seed(config.seed)
    dataset = load_dataset(config.data)
    parts = split(dataset, config.data, config.seed)
    train, test = (
        straightforward.PilImages(images.pixels, images.labels, dataset.mean, dataset.std, augment)
        for images, augment in ((parts.train, config.data.name != "digits"), (parts.test, False))
    )
    model = straightforward.network(
        config.model.arch,
        channels=dataset.channels,
        image_size=dataset.image_size,
        classes=dataset.classes,
        width=config.model.width,
        k=0.5,
        seed=config.seed,
    )
    step, curve = straightforward.trainer(model), []
    for _ in range(config.train.epochs):
        model.train()
        for images, labels in straightforward.loader(train, batch):
            step(images, labels)
        curve.append(straightforward.accuracy(model, straightforward.loader(test, 1000)))
    return curve


def compare(arch: str, data: DataConfig, batch: int, epochs: int, seeds: int) -> list[Row]:
    """The difference of the curves' means over the epochs, and of their last values."""
    pairs = [curves(arch, data, batch, epochs, seed) for seed in range(seeds)]
    name = f"{arch} on {data.name}, {epochs} epochs: points"
    rows = []
    for what, value in (("mean over the epochs", statistics.mean), ("last epoch", lambda curve: curve[-1])):
        plain, ours = ([value(pair[i]) for pair in pairs] for i in (0, 1))
        rows.append(difference(f"{name}, {what}", ("plain", plain), ("ours", ours)))
    return rows


def run() -> list[Row]:
    rows = compare("conv2", DataConfig(name="digits"), 64, 30, 5)
    report("curves", rows)
    if root := os.environ.get("HIDDENWEIGHTS_DATA"):
        rows += compare("conv4", DataConfig(name="cifar10", root=root, subset=10_000), 128, 5, 5)
        report("curves", rows)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
