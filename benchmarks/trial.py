"""One whole trial, start and evaluation included: `python -m benchmarks.trial`, about two minutes.

The quickstart's cell on scikit-learn's digits (Conv2 at width 0.25, 30 epochs, batch 64, one thread)
against the same network trained the straightforward way, each image through torchvision's transforms.
"""

from unittest import mock

import torch

from benchmarks import straightforward
from benchmarks.measure import Row, compare, race, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.training.data import Dataset, load_dataset, split
from hiddenweights.training.train import Trainer


def run(
    name: str = "digits",
    arch: str = "conv2",
    width: float = 0.25,
    epochs: int = 30,
    device: str = "cpu",
    dataset: Dataset | None = None,
) -> list[Row]:
    """`dataset`: images in place of those of the data set `name`."""
    batch = 64 if name == "digits" else 128
    config = CellConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name=name),
        optim=OptimConfig(batch_size=batch),
        train=TrainConfig(epochs=epochs, device=device),
    )
    dataset = dataset or load_dataset(config.data)
    parts = split(dataset, config.data, seed=0)
    pil = {
        part: straightforward.PilImages(
            images.pixels, images.labels, dataset.mean, dataset.std, part == "train" and name != "digits"
        )
        for part, images in (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
        if images is not None
    }
    workers = 4 if device == "cuda" else 0

    def ours() -> None:
        with mock.patch("hiddenweights.training.train.load_dataset", return_value=dataset):
            for _ in Trainer(config).epochs():
                pass

    def theirs() -> None:
        model = straightforward.network(
            arch,
            channels=dataset.channels,
            image_size=dataset.image_size,
            classes=dataset.classes,
            width=width,
            k=0.5,
        ).to(device)
        step = straightforward.trainer(model)
        for _ in range(epochs):
            model.train()
            for images, labels in straightforward.loader(pil["train"], batch, workers):
                step(images.to(device), labels.to(device))
            for part in ("validation", "test"):
                straightforward.accuracy(model, straightforward.loader(pil[part], batch, workers), device)

    times = race({"straightforward": theirs, "ours": ours}, rounds=5 if device == "cpu" else 1, device=device)
    goal = "" if device == "cpu" else "6x, aim 10x" if arch == "conv4" else "2.5x, aim 4x"
    rows = [compare(f"{arch} on {name}, {epochs} epochs", times, "straightforward", "ours", goal)]
    report(f"trial_{arch}" if device == "cpu" else f"trial_{arch}_gpu", rows, device)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
