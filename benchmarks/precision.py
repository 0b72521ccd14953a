"""What bfloat16 costs in accuracy, over seeds: `python -m benchmarks.precision`, half an hour on one core.

Conv2 and Conv4 at width 0.25, on scikit-learn's digits for 30 epochs and, if the environment variable
HIDDENWEIGHTS_DATA names the folder of CIFAR-10, on 10,000 of its images for 12 epochs.
All test images are used.
"""

import os

import torch

from benchmarks.measure import Row, difference, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, Precision, TrainConfig
from hiddenweights.training.train import Trainer


def final_accuracy(
    arch: str, data: DataConfig, batch: int, epochs: int, precision: Precision, seed: int
) -> float:
    """Test accuracy after the last epoch."""
    config = CellConfig(
        model=ModelConfig(arch=arch, width=0.25),
        data=data,
        optim=OptimConfig(batch_size=batch),
        train=TrainConfig(epochs=epochs, precision=precision, device="cpu"),
        seed=seed,
    )
    return float(list(Trainer(config).epochs())[-1]["test_accuracy"])


def run() -> list[Row]:
    cases = {"digits": (DataConfig(name="digits"), 64, 30, 20)}
    if root := os.environ.get("HIDDENWEIGHTS_DATA"):
        cases["CIFAR-10"] = (DataConfig(name="cifar10", root=root, subset=10_000), 128, 12, 5)
    rows = []
    for what, (data, batch, epochs, seeds) in cases.items():
        for arch in ("conv2", "conv4"):
            accuracies: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
            for seed in range(seeds):
                for precision, values in accuracies.items():
                    values.append(final_accuracy(arch, data, batch, epochs, precision, seed))
            rows.append(difference(f"{arch} on {what}, {epochs} epochs: points", *accuracies.items()))
            report("precision", rows)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run()
