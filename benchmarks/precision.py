"""What bfloat16 costs in accuracy, over seeds: `python -m benchmarks.precision [SEEDS]`.

Conv4 at width 0.25: scikit-learn's digits, 30 epochs (a few seconds a run), and where the environment
variable HIDDENWEIGHTS_DATA names CIFAR-10's folder, 10,000 of its images, 8 epochs (a minute a run).
"""

import os
import statistics
import sys

import torch

from benchmarks.measure import Row, report
from hiddenweights.config import DataConfig, ModelConfig, OptimConfig, Precision, TrainConfig, TrialConfig
from hiddenweights.train import Trainer


def final_accuracy(data: DataConfig, batch: int, epochs: int, precision: Precision, seed: int) -> float:
    """Test accuracy after the last epoch."""
    config = TrialConfig(
        model=ModelConfig(arch="conv4", width=0.25),
        data=data,
        optim=OptimConfig(batch_size=batch),
        train=TrainConfig(epochs=epochs, precision=precision, device="cpu"),
        seed=seed,
    )
    return float(list(Trainer(config).epochs())[-1]["test_accuracy"])


def run(seeds: int = 8) -> list[Row]:
    cases = {"digits, 30 epochs": (DataConfig(name="digits"), 64, 30)}
    if root := os.environ.get("HIDDENWEIGHTS_DATA"):
        subset = DataConfig(name="cifar10", root=root, subset=10_000)
        cases["10,000 images of CIFAR-10, 8 epochs"] = (subset, 128, 8)
    rows = []
    for what, (data, batch, epochs) in cases.items():
        full, low = (
            [final_accuracy(data, batch, epochs, precision, seed) for seed in range(seeds)]
            for precision in ("float32", "bfloat16")
        )
        rows.append(difference(what, full, low))
    report("precision", rows)
    return rows


def difference(what: str, full: list[float], low: list[float]) -> Row:
    """The mean of bfloat16 - float32 over seeds, in points, and its standard error."""
    differences = [100 * (b - a) for a, b in zip(full, low, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return Row(
        what=f"{what}: points of accuracy lost",
        ratio=round(-statistics.mean(differences), 3),
        goal=f"0 (+-{error:.2f})",
        baseline=f"float32: {_mean_and_spread(full)}",
        ours=f"bfloat16: {_mean_and_spread(low)}",
        rounds=len(full),
    )


def _mean_and_spread(accuracies: list[float]) -> str:
    return f"{100 * statistics.mean(accuracies):.2f}% (sd {100 * statistics.stdev(accuracies):.2f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(*map(int, sys.argv[1:2]))
