"""Everything that only a GPU can confirm: `python -m benchmarks.gpu`, under ten minutes, one NVIDIA GPU.

The most important part comes first: correctness (against the CPU, against a sort, graph against eager), then
costs (selection, step, share of the card's matrix rate, whole trials, input pipeline, trials together), then
cells of Figure 3 and of ResNet-18 in the remaining time. `python -m benchmarks.gpu correct selection` runs
only these parts. Each part writes results/*_gpu.json, with the card's name.

It only needs torch, torchvision, Triton and safetensors; the images are random and have CIFAR-10's shape.
The parts `figure_3` and `resnet18` train cells of the paper. They also need orjson, and CIFAR-10 in the
folder that HIDDENWEIGHTS_DATA names. The cells go into the store $HIDDENWEIGHTS_STORE (by default runs/), and
a second run continues with the next ones.
tests/test_fast_gpu.py runs the parts on a CPU.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import correct, pipeline, roofline, selection, step, trial
from benchmarks.measure import Row, race, readable, report
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.identity import cell_id, resolve, short_name

STEPS = 300


def matrix_rate(size: int = 8192, device: str = "cuda") -> float:
    """Measured floating-point operations per second of a bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = race({"product": lambda: a @ b}, rounds=10, repeats=5, device=device)
    return 2 * size**3 / statistics.median(times["product"])


def share_of_the_matrix_rate(case: str, peak: float, device: str) -> Row:
    """Operations of a dense step of `case` per second of a supermask step, as a share of `peak`."""
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


# --- several trials at once --------------------------------------------------------------------------------


def trials_at_once(
    arch: str, width: float, count: int, goal: str, device: str, steps: int = STEPS
) -> list[Row]:
    """Steps per second of `count` trials together on the card, in each possible way, over those of one."""
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
    """One process with one thread, which replays the graphs of all trials in turn, each on its own stream."""
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
    """NVIDIA's multi-process service for processes started inside the block; False if it cannot start."""
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


# --- cells of the paper ------------------------------------------------------------------------------------


def paper_cells(sweep: str, root: str) -> list[CellConfig]:
    """The cells of `depth` (Figure 3) or `resnet18`, in an order that completes curves early.

    One seed of everything comes first: signed constant weights and the trained networks (the smallest network
    first, the middle of a curve before its ends), then Kaiming normal weights. Two more seeds of the main
    comparison follow, which is k = 0.5 against the trained networks, because three seeds give an interval.
    """
    from hiddenweights.sweeps.papers import ramanujan2020

    archs = [*ramanujan2020.CONVS, "resnet18"]

    def place(cell: CellConfig) -> tuple[object, ...]:
        model = cell.model
        kaiming, dense = model.distribution == "kaiming_normal", model.method == "dense"
        compared = cell.seed < 3 and (dense or (model.k == 0.5 and not kaiming))
        turn = 0 if cell.seed == 0 else 1 if compared else 2
        return turn, cell.seed, kaiming, archs.index(model.arch), dense, abs((model.k or 0.5) - 0.5)

    cells = sorted((cell for arm in getattr(ramanujan2020, sweep)() for cell in arm.cells()), key=place)
    return [replace(cell, data=replace(cell.data, root=root)) for cell in cells]


def train_sweep(
    sweep: str, seconds: float, device: str, cells: Sequence[CellConfig] | None = None, at_once: int = 4
) -> list[str]:
    """Train the cells of `sweep` for `seconds`, `at_once` at a time, under MPS if it starts.

    See `train_cells`. Returns the ids of the finished cells of the sweep. The store gets its plan, so that
    ``hiddenweights analysis figure SWEEP`` draws it. Raises `LookupError` if no folder with CIFAR-10 is
    named.
    """
    from hiddenweights.cells.store import Store, default_store

    ends, store = time.time() + seconds, Store(default_store())
    if cells is None:
        root = os.environ.get("HIDDENWEIGHTS_DATA")
        if root is None:
            raise LookupError("HIDDENWEIGHTS_DATA names no folder with CIFAR-10")
        cells = paper_cells(sweep, root)
    ids = [cell_id(config) for config in cells]
    store.prepare()
    if not store.plan(sweep):
        store.write_plan(sweep, {"name": sweep, "cells": ids})
    context = mp.get_context("spawn")
    todo: mp.Queue[int | None] = context.Queue()  # numbers: so many cells would not fit into its pipe
    for place in [*range(len(cells)), *[None] * at_once]:
        todo.put(place)
    workers = [context.Process(target=_train_from, args=(cells, todo, ends)) for _ in range(at_once)]
    with _mps(device):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"cells of {sweep} failed; the reasons are above")
    finished = store.finished()
    return [cell for cell in ids if cell in finished]


def _train_from(cells: Sequence[CellConfig], todo: "mp.Queue[int | None]", ends: float) -> None:
    """Train cells until `ends`. A cell that fails does not stop the others, but is the exit status."""
    torch.set_num_threads(1)
    failed = False
    while (place := todo.get()) is not None and time.time() < ends:
        try:
            train_cells(ends - time.time(), [cells[place]])
        except Exception:
            traceback.print_exc()
            failed = True
    sys.exit(failed)


def train_cells(seconds: float, cells: Iterable[CellConfig]) -> list[str]:
    """Train the cells that the store lacks, for `seconds`. Prints a line for each finished cell.

    A cell that is cut off resumes in the next call.
    """
    from hiddenweights.cells.cell import cell_epochs
    from hiddenweights.cells.store import Store, default_store

    ends, store, finished = time.monotonic() + seconds, Store(default_store()), []
    for config in cells:
        if store.result(cell_id(config)):
            continue
        with contextlib.closing(cell_epochs(config, store)) as epochs:
            for record in epochs:
                accuracy = float(record["test_accuracy"])
                if time.monotonic() > ends:
                    return finished
        finished.append(f"{short_name(resolve(config))}: {100 * accuracy:.2f}%")
        print(finished[-1], flush=True)
    return finished


# --- all of it ---------------------------------------------------------------------------------------------

GOALS = {"conv4": ("<= 30, aim 19", "6, aim 10"), "resnet18": ("<= 130, aim 86", "2.5, aim 4")}
LIMIT = 570.0  # seconds for everything


def parts(device: str) -> dict[str, Callable[[], object]]:
    """The parts by name, in the order in which they run."""
    images = step.random_images(3, 32, 50_000, test=10_000)
    both = ("conv4", "resnet18")

    def roofs() -> list[Row]:
        return [row for arch in both for row in roofline.measured(arch, device)]

    def shares() -> list[Row]:
        peak = matrix_rate()
        return [share_of_the_matrix_rate(case, peak, device) for case in both]

    def trials(arch: str, epochs: int) -> list[Row]:
        return trial.on_a_gpu(arch, images, GOALS[arch], device, epochs=epochs)

    def at_once() -> list[Row]:
        rows = trials_at_once("conv2", 0.25, 4, "2x, aim 3x", device)
        return rows + trials_at_once("conv4", 1.0, 2, "1.2x, aim 1.4x", device)

    def reported(name: str, rows: Callable[[], list[Row]]) -> Callable[[], None]:
        return lambda: report(f"{name}_gpu", rows(), device)

    return {
        "correct": reported("correct", lambda: correct.everything(images, device)),
        "selection": lambda: selection.run(device),
        "roofline": reported("roofline", roofs),
        "step": lambda: [step.run(case, device) for case in both],
        "rate": reported("rate", shares),
        "trial_conv4": reported("trial_conv4", lambda: trials("conv4", 100)),
        "trial_resnet18": reported("trial_resnet18", lambda: trials("resnet18", 20)),
        "pipeline": lambda: pipeline.run(device),
        "at_once": reported("trials_at_once", at_once),
    }


def main(names: Sequence[str] = (), device: str = "cuda") -> int:
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here; nothing was measured", file=sys.stderr)
        return 1
    started = time.perf_counter()

    def left() -> float:
        return LIMIT - (time.perf_counter() - started)

    known = parts(device) | {
        "figure_3": lambda: train_sweep("depth", left(), device),
        "resnet18": lambda: train_sweep("resnet18", left(), device),
    }
    if unknown := set(names) - set(known):
        print(f"{', '.join(sorted(unknown))}: no part; choices: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or known:
        begun = time.perf_counter()
        if left() < 0:
            failed.append(name)
            print(f"\n{name}: left out, since {LIMIT:.0f} s are over")
            continue
        try:
            known[name]()
        except Exception:  # the other parts are worth running anyway
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\nfailed: {', '.join(failed) or 'none'}; {time.perf_counter() - started:.0f} s in all")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
