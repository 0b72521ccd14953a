"""The gains of the fast paths, guarded loosely, so that losing one fails. benchmarks/ measures them."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import compare, race
from benchmarks.selection import sort_against_ours
from benchmarks.step import our_step, random_images
from hiddenweights.config import CellConfig, DataConfig, Method, ModelConfig, OptimConfig, Optimizer
from hiddenweights.images.dataset import Batches
from hiddenweights.masking.topk import _on_any_device


def test_selection_beats_a_sort_eightfold() -> None:
    assert sort_against_ours("", [(10**6,)], rounds=3, goal="")[0].ratio > 8


def test_a_supermask_step_costs_about_a_dense_step() -> None:
    dataset = random_images(3, 32)
    step = {
        method: our_step(
            CellConfig(
                model=ModelConfig(arch="conv4", width=0.5, method=method), data=DataConfig(name="cifar10")
            ),
            dataset,
        )
        for method in ("dense", "edge_popup")
    }
    times = race(step, rounds=5)
    assert compare("", times, "edge_popup", "dense", "").ratio < 1.5


def test_augmented_batches_come_faster_than_torchvision_makes_them() -> None:
    """torchvision gives some 10,000 images a second on one core; a busy core may take four times as long."""
    dataset = random_images(3, 32, 5120)
    batches = Batches(dataset.train, dataset.mean, dataset.std)
    times = race(
        {"ours": lambda: sum(len(y) for _, y in batches.shuffled(128, seed=0, epoch=0, augment=True))},
        rounds=5,
    )
    assert 5120 / min(times["ours"]) > 25_000


class WhatNoGraphHolds(TorchDispatchMode):
    """Collects what a CUDA graph cannot hold.

    That is operations for which the CPU waits for a value or a size, and draws from other generators than
    torch's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        foreign = any(isinstance(x, torch.Generator) for x in (*args, *(kwargs or {}).values()))
        if foreign or func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("edge_popup", "sgd"), ("sampled", "sgd"), ("dense", "adam"), ("iterand", "sgd")],
)
def test_a_step_on_a_gpu_waits_for_nothing(
    method: Method, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select_as_on_a_gpu(values: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
        return _on_any_device(values, scores, kept, dtype)

    monkeypatch.setattr(torch.ops.hiddenweights, "keep_largest", select_as_on_a_gpu)
    dataset = random_images(3, 8, 32)
    step = our_step(
        CellConfig(
            model=ModelConfig(arch="conv2", width=0.25, method=method),
            data=DataConfig(name="cifar10"),
            optim=OptimConfig(optimizer=optimizer),
        ),
        dataset,
    )
    batches = Batches(dataset.train, dataset.mean, dataset.std).shuffled(16, seed=0, epoch=0, augment=True)
    next(batches)
    with WhatNoGraphHolds() as reads:
        next(batches)
        step()
    assert reads.names == []
    with reads:
        torch.ones(1).item()
        torch.rand(1, generator=torch.Generator())
    assert reads.names == ["aten::_local_scalar_dense", "aten::rand.generator"]
