"""Whether a GPU computes what a CPU does: rows of differences, for benchmarks/gpu.py."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import step
from benchmarks.measure import Row
from benchmarks.roofline import shapes_of
from hiddenweights.config import CellConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from hiddenweights.images.dataset import Batches, Dataset
from hiddenweights.masking.masks import BatchedSelection, IteRand
from hiddenweights.masking.supermask import current_masks, masks_of
from hiddenweights.masking.topk import Memory, keep_largest, keep_largest_each
from hiddenweights.training.train import Trainer

# A graph has to repeat every way to a masked weight, with both optimisers.
ARMS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "sampled"},
    {"method": "iterand"},
    {"method": "biprop"},
    {"selection": "global"},
    {"method": "dense", "optimizer": "adam"},
)
ODD_SHAPES = [(1,), (2,), (300,), (4096,), (4097,), (7, 3, 1, 1), (40, 50, 3, 2), (10**6 + 3,)]
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "coarse": lambda x: (x * 10).round() / 10,
    "all zero": torch.zeros_like,
    "all equal": lambda x: torch.where(x < 0, -0.3, 0.3),
    "infinite and tiny": lambda x: torch.where(x > 0.5, torch.inf, x * 1e-40),
}


def everything(dataset: Dataset, device: str) -> list[Row]:
    """All rows below, for the networks that the goals name."""
    rows = ten_steps(dataset, device)
    rows += selections(device, [*map(shapes_of, ("conv4", "resnet18")), ODD_SHAPES, [(10**7,)]])
    with repeatable():
        rows += [graph_and_eager(dataset, device, arm, "conv4") for arm in ARMS]
        rows.append(graph_and_eager(dataset, device, {}, "resnet18"))
    with float32_convolutions():
        return rows + [predictions_elsewhere(arch, dataset, device) for arch in ("conv4", "resnet18")]


def ten_steps(dataset: Dataset, device: str, arch: str = "conv4", width: float = 1.0) -> list[Row]:
    """How far scores and masks are apart after ten float32 steps on `device` and on the CPU."""
    config = _config({"arch": arch, "width": width}, device, batch=32)
    with float32_convolutions():
        here, there = (
            _trained(step.built(_on(config, where), dataset), 10).to("cpu") for where in (device, "cpu")
        )
    pairs = zip(masks_of(here).values(), masks_of(there).values(), strict=True)
    apart = max(float((a.scores - b.scores).detach().abs().max()) for a, b in pairs)
    masks = list(zip(current_masks(here).values(), current_masks(there).values(), strict=True))
    differing = sum(int((a != b).sum()) for a, b in masks) / sum(a.numel() for a, _ in masks)
    return [
        _row(f"{arch}, 10 steps: scores apart by, 1e-4", apart * 1e4, "<= 1", device),
        _row(f"{arch}, 10 steps: mask bits that differ, %", 100 * differing, "<= 0.1", device),
    ]


def selections(device: str, networks: Sequence[Sequence[tuple[int, ...]]]) -> list[Row]:
    """The number of layers that differ from a stable sort, over scores, fractions, layouts and brackets."""
    wrong = total = 0
    for shapes, (name, make), k in itertools.product(networks, SCORES.items(), (0.1, 0.5, 1.0)):
        generator = torch.Generator(device).manual_seed(len(name))
        draw = [
            _laid_out(torch.randn(shape, device=device, generator=generator), i % len(shapes))
            for i, shape in enumerate([*shapes, *shapes])
        ]
        values, scores = draw[: len(shapes)], [make(x) for x in draw[len(shapes) :]]
        kept = [max(1, round(k * score.numel())) for score in scores]
        dtypes, memory = [torch.float32] * len(shapes), Memory()
        for attempt in range(4):
            expected = [_by_sorting(*layer) for layer in zip(values, scores, kept, strict=True)]
            found = [keep_largest_each(values, scores, kept, dtypes, memory)]
            if not attempt:
                found.append(tuple(keep_largest(*layer) for layer in zip(values, scores, kept, strict=True)))
            for results in found:
                total += len(results)
                wrong += sum(not torch.equal(a, b) for a, b in zip(results, expected, strict=True))
            if attempt == 1:  # a step further, the brackets should hold
                scores = [score * 1.0001 for score in scores]
            if attempt == 2 and memory.room is not None:
                memory.room.state[:2].random_(generator=generator)  # brackets that are of no use
    return [_row(f"selections of {total} layers that are not a sort's", wrong, "0", device)]


def graph_and_eager(
    dataset: Dataset, device: str, arm: dict[str, Any], arch: str, width: float = 1.0, steps: int = 20
) -> Row:
    """The number of the network's tensors that differ between steps with a graph and steps without one."""
    model = {"arch": arch, "width": width} | {k: v for k, v in arm.items() if k != "optimizer"}
    config = _config(model, device, batch=64, optimizer=arm.get("optimizer"))
    networks = []
    for eager in (False, True):
        trainer = step.built(config, dataset)
        if eager:
            trainer.run_step = trainer.eager_step
        torch.manual_seed(0)  # of the CPU and the GPU, for methods that draw
        with mock.patch.object(IteRand, "period", 5):
            networks.append(_trained(trainer, steps))
    states = [network.state_dict().values() for network in networks]
    differing = sum(not torch.equal(a, b) for a, b in zip(*states, strict=True))
    title = " ".join([arch, *map(str, arm.values())])
    misses = _misses(networks[0])
    seen = f"; {misses} of {steps} steps without brackets" if misses is not None else ""
    return _row(f"{title}: graph and eager, tensors that differ", differing, "0", f"{device}{seen}")


def predictions_elsewhere(arch: str, dataset: Dataset, device: str, width: float = 1.0) -> Row:
    """How many of 10,000 float32 predictions of a ticket found on `device` differ on the CPU."""
    config = CellConfig(
        model=ModelConfig(arch=arch, width=width),
        data=DataConfig(name="cifar10", subset=len(dataset.train) // 2),
        train=TrainConfig(epochs=1, device=device, precision="float32"),
    )
    with mock.patch("hiddenweights.training.train.load_dataset", return_value=dataset):
        trainer = Trainer(config)
        *_, last = trainer.epochs()
        network = trainer.ticket(last).network()
    images = list(itertools.islice(Batches(dataset.test, dataset.mean, dataset.std).in_order(1000), 10))
    with torch.no_grad():
        here = torch.cat([network(batch).argmax(1) for batch, _ in images])
        network.to(device)
        there = torch.cat([network(batch.to(device)).argmax(1).cpu() for batch, _ in images])
    what = f"{arch}: predictions of {len(here)} that differ from the CPU's"
    return _row(what, float((here != there).sum()), "0", device)


@contextlib.contextmanager
def float32_convolutions() -> Iterator[None]:
    """On a GPU, float32 as a CPU computes it, without TF32's shorter mantissas."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """On a GPU, convolutions that give the same bits every time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=True):
        yield


def _config(model: dict[str, Any], device: str, batch: int, optimizer: Any = None) -> CellConfig:
    return CellConfig(
        model=ModelConfig(**model),
        data=DataConfig(name="cifar10"),
        optim=OptimConfig(batch_size=batch, optimizer=optimizer),
        train=TrainConfig(device=device, precision="float32"),
    )


def _on(config: CellConfig, device: str) -> CellConfig:
    return CellConfig(
        model=config.model,
        data=config.data,
        optim=config.optim,
        train=TrainConfig(device=device, precision=config.train.precision),
    )


def _trained(trainer: Trainer, steps: int) -> nn.Module:
    for images, labels in itertools.islice(step.batches(trainer), steps):
        trainer.step(images, labels)
    return trainer.network


def _misses(network: nn.Module) -> int | None:
    """The number of steps in which the bracket missed, for the worst layer; None without kernels."""
    hooks = [getattr(hook, "__self__", None) for hook in network._forward_pre_hooks.values()]
    rooms = [hook.memory.room for hook in hooks if isinstance(hook, BatchedSelection)]
    return max(rooms[0].misses()) if rooms and rooms[0] is not None else None


def _laid_out(x: Tensor, i: int) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and i % 3 else x


def _by_sorting(values: Tensor, scores: Tensor, kept: int) -> Tensor:
    order = scores.abs().flatten().sort(descending=True, stable=True).indices[:kept]
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order] = True
    return torch.where(mask.view(scores.shape), values, 0.0)


def _row(what: str, count: float, goal: str, device: str) -> Row:
    return Row(what=what, ratio=round(count, 4), goal=goal, baseline="", ours=device, rounds=1)
