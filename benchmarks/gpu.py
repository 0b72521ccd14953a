"""Everything that only a GPU can confirm: `python -m benchmarks.gpu`, under ten minutes, one NVIDIA GPU.

The straightforward script's images a second first; then sort against topk against our kernels, whole steps
with and without a graph, the share of the card's matrix rate, the input pipeline, whole trials, several
trials at once, and a ticket's predictions here and on the CPU. Images are random, of CIFAR-10's shape.
Needs torch, torchvision, Triton and safetensors alone. No GPU has run this yet (benchmarks/README.md);
tests/test_fast_gpu.py runs its parts on a CPU.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pipeline, selection, step, straightforward, trial
from benchmarks.measure import Row, race, readable, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.data import Batches, Dataset
from hiddenweights.training.train import Trainer

STEPS = 300


def straightforward_rate(arch: str, dataset: Dataset, device: str, workers: int = 4) -> Row:
    """Images a second of the straightforward script: an epoch's loop, its loader with `workers`."""
    images = straightforward.PilImages(
        dataset.train.pixels, dataset.train.labels, dataset.mean, dataset.std, augment=True
    )
    model = straightforward.network(
        arch, channels=dataset.channels, image_size=dataset.image_size, classes=10, width=1.0, k=0.5
    )
    one_step = straightforward.trainer(model.to(device))

    def epoch() -> None:
        for batch, labels in straightforward.loader(images, 128, workers):
            one_step(batch.to(device), labels.to(device))

    seconds = race({"epoch": epoch}, rounds=1, device=device)["epoch"][0]
    return Row(
        what=f"{arch}: images a second, straightforward",
        ratio=round(len(images) / seconds, 1),
        goal="",
        baseline=f"{len(images)} images: {readable(seconds)}",
        ours=f"{workers} workers",
        rounds=1,
    )


def matrix_rate(size: int = 8192, device: str = "cuda") -> float:
    """Floating-point operations a second of a bfloat16 matrix product, measured."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = race({"product": lambda: a @ b}, rounds=10, repeats=5, device=device)
    return 2 * size**3 / statistics.median(times["product"])


def share_of_the_matrix_rate(case: str, peak: float, device: str) -> Row:
    """The arithmetic of a dense step of `case` over the time of a supermask step, as a share of `peak`."""
    contestants = step.steps(case, device)
    with FlopCounterMode(display=False) as counter:
        contestants["dense bfloat16, eager" if device == "cuda" else "dense bfloat16"]()
    ours = {"step": contestants["supermask bfloat16"]}
    times = race(ours, rounds=10 if device == "cuda" else 2, repeats=20, device=device)["step"]
    rate = counter.get_total_flops() / statistics.median(times)
    return Row(
        what=f"{case}: share of the matrix rate, %",
        ratio=round(100 * rate / peak, 2),
        goal="20, aim 35" if case == "conv4" else "25, aim 35",
        baseline=f"matrix product: {peak / 1e12:.3g} TFLOP/s",
        ours=f"a step: {readable(statistics.median(times))}",
        rounds=len(times),
    )


def predictions_elsewhere(arch: str, dataset: Dataset, device: str, width: float = 1.0) -> Row:
    """How many predictions of a ticket found on `device` differ on the CPU, in float32, of 1,000 images."""
    config = CellConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name="cifar10", subset=len(dataset.train) // 2),
        train=TrainConfig(epochs=1, device=device, precision="float32"),
    )
    with (
        mock.patch("hiddenweights.training.train.load_dataset", return_value=dataset),
        mock.patch("hiddenweights.tickets.ticket.load_dataset", return_value=dataset),
    ):
        trainer = Trainer(config)
        *_, last = trainer.epochs()
        network = Ticket.of(trainer, last).network()
    images, _ = next(Batches(dataset.test, dataset.mean, dataset.std).in_order(1000))
    with torch.no_grad():
        here = network(images).argmax(1)
        there = network.to(device)(images.to(device)).argmax(1).cpu()
    return Row(
        what=f"{arch}: predictions of {len(images)} that differ from the CPU's",
        ratio=float((here != there).sum()),
        goal="0",
        baseline="CPU, float32",
        ours=device,
        rounds=1,
    )


# --- several trials at once --------------------------------------------------------------------------------


def trials_at_once(
    arch: str, width: float, count: int, goal: str, device: str, steps: int = STEPS
) -> list[Row]:
    """Steps a second of `count` trials on the card, in each way there is, over those of one alone."""
    alone = _in_processes(arch, width, 1, device, steps)
    ways: dict[str, float] = {
        "processes": _in_processes(arch, width, count, device, steps),
        "streams": _on_streams(arch, width, count, device, steps),
    }
    with _mps(device) as running:
        if running:
            ways["processes under MPS"] = _in_processes(arch, width, count, device, steps)
    return [
        Row(
            what=f"{arch}, width {width:g}: {count} {way} / one",
            ratio=round(together / alone, 3),
            goal=goal,
            baseline=f"one: {alone:.0f} steps/s",
            ours=f"{count}: {together:.0f} steps/s",
            rounds=1,
        )
        for way, together in ways.items()
    ]


def _in_processes(arch: str, width: float, processes: int, device: str, steps: int) -> float:
    context = mp.get_context("spawn")
    barrier, seconds = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_train_steps, args=(arch, width, device, steps, barrier, seconds), daemon=True)
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    slowest = max(seconds.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return processes * steps / slowest


def _train_steps(
    arch: str, width: float, device: str, steps: int, barrier: "mp.Barrier", seconds: "mp.Queue[float]"
) -> None:
    torch.set_num_threads(1)
    one_step = _trial_step(arch, width, device)
    _wait(device)
    barrier.wait()
    started = time.perf_counter()
    for _ in range(steps):
        one_step()
    _wait(device)
    seconds.put(time.perf_counter() - started)


def _on_streams(arch: str, width: float, count: int, device: str, steps: int) -> float:
    """One process and one thread, which replays the graphs of all trials in turn, a stream each."""
    trials = [_trial_step(arch, width, device) for _ in range(count)]
    streams = [torch.cuda.Stream() for _ in trials] if device == "cuda" else [None] * count
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        for one_step, stream in zip(trials, streams, strict=True):
            with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                one_step()
    _wait(device)
    return count * steps / (time.perf_counter() - started)


def _trial_step(arch: str, width: float, device: str) -> Callable[[], object]:
    config = CellConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name="cifar10"),
        optim=OptimConfig(batch_size=128),
        train=TrainConfig(device=device),
    )
    return step.our_step(config, step.random_images(3, 32))


@contextlib.contextmanager
def _mps(device: str) -> Iterator[bool]:
    """NVIDIA's multi-process service for processes started inside; False where there is none to start."""
    daemon = shutil.which("nvidia-cuda-mps-control")
    if device != "cuda" or daemon is None:
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        before = {name: os.environ.get(name) for name in own}
        started = subprocess.run([daemon, "-d"], env=os.environ | own, check=False)
        if started.returncode:
            yield False
            return
        try:
            os.environ.update(own)
            yield True
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            subprocess.run([daemon], input="quit\n", text=True, env=os.environ | own, timeout=30, check=False)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here; nothing was measured", file=sys.stderr)
        return 1
    started, device, images = time.perf_counter(), "cuda", step.random_images(3, 32, 50_000)
    both = ("conv4", "resnet18")

    def rates() -> None:
        report("straightforward_gpu", [straightforward_rate(arch, images, device) for arch in both], device)

    def shares() -> None:
        peak = matrix_rate()
        report("rate_gpu", [share_of_the_matrix_rate(case, peak, device) for case in both], device)

    def at_once() -> None:
        rows = trials_at_once("conv2", 0.25, 4, "2x, aim 3x", device)
        for arch in ("conv2", "conv4"):
            rows += trials_at_once(arch, 1.0, 2, "1.2x, aim 1.4x", device)
        report("trials_at_once_gpu", rows, device)

    failed = 0
    for part in (
        rates,
        lambda: selection.run(device),
        *(lambda case=case: step.run(case, device) for case in both),
        shares,
        lambda: pipeline.run(device),
        *(
            lambda arch=arch, epochs=epochs: trial.run("cifar10", arch, 1.0, epochs, device, images)
            for arch, epochs in (("conv4", 5), ("resnet18", 2))
        ),
        at_once,
        lambda: report("tickets_gpu", [predictions_elsewhere(arch, images, device) for arch in both], device),
    ):
        try:
            part()
        except Exception:  # the other parts are worth their time all the same
            traceback.print_exc()
            failed += 1
    print(f"\n{failed} parts failed; {time.perf_counter() - started:.0f} s in all")
    return failed


if __name__ == "__main__":
    sys.exit(main())
