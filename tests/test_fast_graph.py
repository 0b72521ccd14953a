"""What a CUDA graph needs of the trainer, as far as a CPU can tell: that a recorded step is the step."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiddenweights.flat import unflatten
from hiddenweights.identity import resolve
from hiddenweights.masking.masks import IteRand
from hiddenweights.training import train
from hiddenweights.training.build import recordable
from hiddenweights.training.cuda_graph import WARM_UP, CudaRecorder, GraphedStep, Step
from hiddenweights.training.optim import build_optimizer, set_learning_rate
from hiddenweights.training.train import Trainer


class Tape(TorchDispatchMode):
    """The operations of a step in their order, with the tensors and the numbers that they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        """Do all of it again, on these very tensors."""
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if torch.is_tensor(old) and old is not new:
                        old.copy_(new)


class Recorded:
    """A recorder for the CPU, which like a graph knows the tensors of the recording, and no Python."""

    def __init__(self) -> None:
        self.recordings = self.replays = self.warmed_up = 0

    def warm_up(self, step: Step, images: Tensor, labels: Tensor) -> Tensor:
        self.warmed_up += 1
        return step(images, labels)

    def record(self, step: Step, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        self.recordings += 1
        tape = Tape()
        with tape:
            result = step(images, labels)

        def replay() -> Tensor:
            self.replays += 1
            if self.replays > 1:  # recording took the first step
                tape.play()
            return result

        return replay


def cell(**flat: object):
    quick = {"model.arch": "conv2", "model.width": 0.1, "data.subset": 300, "train.epochs": 2,
             "optim.batch_size": 32, "train.device": "cpu"}  # fmt: skip
    return unflatten(quick | {name.replace("__", "."): value for name, value in flat.items()})


def learnt(trainer: Trainer) -> list[Tensor]:
    assert trainer.optimizer is not None
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    return [*trainer.network.state_dict(keep_vars=True).values(), *filter(torch.is_tensor, state), *rates]


RECORDABLE = [
    {},
    {"model__selection": "global"},
    {"model__method": "biprop", "model__distribution": "kaiming_normal"},
    {"model__method": "dense"},
    {"model__arch": "resnet18", "model__width": 0.05, "data__augment": "crop_flip"},
    {"model__method": "sampled"},
    {"model__method": "iterand"},
    {"model__method": "dense", "optim__optimizer": "adam"},
]


@pytest.fixture(autouse=True)
def weights_are_redrawn_soon(monkeypatch):
    monkeypatch.setattr(IteRand, "period", 3)


@pytest.mark.parametrize("options", RECORDABLE, ids=str)
def test_a_recorded_step_gives_the_same_records_and_networks(options):
    assert recordable(resolve(cell(**options)))
    plain, recorded, recorder = Trainer(cell(**options)), Trainer(cell(**options)), Recorded()
    [*plain.epochs()]
    recorded.run_step = GraphedStep(recorded.eager_step, recorder)
    [*recorded.epochs()]
    assert recorder.warmed_up == WARM_UP
    assert recorder.recordings == 1
    assert recorder.replays == 2 * (270 // 32) - WARM_UP  # the last batch of an epoch has 14 images
    for ours, theirs in zip(learnt(recorded), learnt(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"model__arch": "torchvision/resnet18"},
        {"model__arch": "someones.module:network"},
    ],
    ids=str,
)
def test_steps_that_cannot_be_recorded_are_not(options):
    assert not recordable(resolve(cell(**{"model__width": 1.0} | options)))


@pytest.mark.parametrize("options", RECORDABLE, ids=str)
def test_what_a_step_changes_stays_where_it_is(options):
    """After the warm-up, a recording of addresses is as good as the names."""
    trainer = Trainer(cell(**options))
    epochs = trainer.epochs()
    next(epochs)
    places = [tensor.data_ptr() for tensor in learnt(trainer)]
    next(epochs)
    assert [tensor.data_ptr() for tensor in learnt(trainer)] == places


def test_resuming_elsewhere_keeps_the_rate_and_the_options_of_the_device(tmp_path, monkeypatch):
    config = cell(model__method="dense", optim__optimizer="adam")
    next(Trainer(config, tmp_path).epochs())
    load = train.load_checkpoint

    def from_a_gpu(folder, check):
        state = load(folder, check)
        state["optimizer"]["param_groups"][0] |= {"fused": False, "lr": 7.0}
        return state

    monkeypatch.setattr(train, "load_checkpoint", from_a_gpu)
    resumed, whole = Trainer(config, tmp_path), Trainer(config)
    [*resumed.epochs()], [*whole.epochs()]
    assert resumed.restored == 1
    assert resumed.optimizer.param_groups[0]["fused"]
    for ours, theirs in zip(learnt(resumed), learnt(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_in_a_tensor_takes_the_steps_of_a_number(optimizer):
    config = resolve(cell(optim__optimizer=optimizer)).optim
    values = []
    for as_number in (False, True):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(1003))
        stepper = build_optimizer([parameter], config, parameter.device)
        for rate in (0.1, 0.03, 1e-5):
            set_learning_rate(stepper, rate)
            if as_number:
                stepper.param_groups[0]["lr"] = rate
            parameter.grad = torch.randn(1003)
            stepper.step()
            if as_number:
                stepper.param_groups[0]["lr"] = torch.zeros(())
        values.append(parameter.detach())
    assert torch.equal(*values)


def test_no_graph_of_an_earlier_cell_is_freed_during_a_recording(monkeypatch):
    class Earlier:
        pass

    earlier = Earlier()
    earlier.itself = earlier  # only the garbage collector frees it
    alive = weakref.ref(earlier)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Earlier)
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    gc.disable()
    try:
        del earlier
        seen = []
        recorder = CudaRecorder(torch.device("cuda"))
        recorder.record(lambda images, labels: seen.append(alive()), torch.ones(1), torch.ones(1))
    finally:
        gc.enable()
    assert seen == [None]
