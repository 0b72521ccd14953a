"""Everything that only a GPU can confirm: `python -m benchmarks.gpu`, under ten minutes, one NVIDIA GPU.

In this order: the selection kernel, whole steps, the input pipeline, whole trials, trials at once, the
share of the card's matrix rate. No GPU has run this yet (benchmarks/README.md). Images are random, except in
the trials, which are run where the environment variable HIDDENWEIGHTS_DATA names CIFAR-10's folder.
"""

import os
import statistics
import sys
import time

import torch
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pipeline, selection, step, trial
from benchmarks.measure import Row, race, readable, report
from hiddenweights.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, TrialConfig

STEPS = 300


def matrix_rate(size: int = 8192) -> float:
    """Floating-point operations a second of a bfloat16 matrix product, measured."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = race({"product": lambda: a @ b}, rounds=20, device="cuda")
    return 2 * size**3 / statistics.median(times["product"])


def share_of_the_matrix_rate(case: str, peak: float) -> Row:
    """The arithmetic of a dense step of `case` over the time of a supermask step, as a share of `peak`."""
    contestants = step.steps(case, "cuda")
    with FlopCounterMode(display=False) as counter:
        contestants["dense bfloat16"]()
    times = race({"step": contestants["supermask bfloat16"]}, rounds=100, device="cuda")["step"]
    rate = counter.get_total_flops() / statistics.median(times)
    return Row(
        what=f"{case}: share of the matrix rate, %",
        ratio=round(100 * rate / peak, 2),
        goal="20, aim 35" if case == "conv4" else "25, aim 35",
        baseline=f"matrix product: {peak / 1e12:.0f} TFLOP/s",
        ours=f"a step: {readable(statistics.median(times))}",
        rounds=len(times),
    )


def trials_at_once(arch: str, width: float, count: int, goal: str) -> Row:
    """Steps a second of `count` processes on the card, over those of one process alone."""
    alone, together = (_steps_per_second(arch, width, processes) for processes in (1, count))
    return Row(
        what=f"{arch}, width {width:g}: {count} trials at once / one",
        ratio=round(together / alone, 3),
        goal=goal,
        baseline=f"one: {alone:.0f} steps/s",
        ours=f"{count}: {together:.0f} steps/s",
        rounds=1,
    )


def _steps_per_second(arch: str, width: float, processes: int) -> float:
    context = mp.get_context("spawn")
    barrier, seconds = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_train_steps, args=(arch, width, barrier, seconds)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    slowest = max(seconds.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return processes * STEPS / slowest


def _train_steps(arch: str, width: float, barrier: "mp.Barrier", seconds: "mp.Queue[float]") -> None:
    config = TrialConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name="cifar10"),
        optim=OptimConfig(batch_size=128),
        train=TrainConfig(precision="bfloat16", device="cuda"),
    )
    one_step = step.our_step(config, step.random_images(3, 32))
    for _ in range(20):
        one_step()
    torch.cuda.synchronize()
    barrier.wait()
    started = time.perf_counter()
    for _ in range(STEPS):
        one_step()
    torch.cuda.synchronize()
    seconds.put(time.perf_counter() - started)


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here; nothing was measured", file=sys.stderr)
        return 1
    selection.run("cuda")
    for case in ("conv4", "resnet18"):
        step.run(case, "cuda")
    pipeline.run("cuda")
    peak = matrix_rate()
    report("rate_gpu", [share_of_the_matrix_rate(case, peak) for case in ("conv4", "resnet18")], "cuda")
    rows = [
        trials_at_once("conv4", 1.0, 2, "1.2x, aim 1.4x"),
        trials_at_once("conv2", 0.25, 4, "2x, aim 3x"),
    ]
    report("trials_at_once_gpu", rows, "cuda")
    if root := os.environ.get("HIDDENWEIGHTS_DATA"):
        for arch in ("conv4", "resnet18"):
            trial.run("cifar10", arch, 1.0, 2, "cuda", root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
