"""What cells cost and which part of a card they get; a cell that ran out of memory is tried by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from hiddenweights import cli
from hiddenweights.cells import processor
from hiddenweights.cells.store import Store
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.flat import unflatten
from hiddenweights.sweeps import capacity, experiments, tracking
from hiddenweights.sweeps import commands as main
from hiddenweights.sweeps import launch as launch_module
from hiddenweights.sweeps.cost import Measured, costs, describe
from hiddenweights.sweeps.grid import Arm, arm
from hiddenweights.sweeps.options import Options

CONV = unflatten({"model.arch": "conv4", "data.name": "cifar10"})
TINY = {"train.epochs": 1, "data.subset": 200}


def result(seconds: float, device: str = "a GPU", gpu_memory: float | None = None) -> dict[str, Any]:
    return {"seconds": seconds, "device": device, "gpu_memory": gpu_memory}


def measured(config: CellConfig, *results: dict[str, Any]) -> Measured:
    found = Measured()
    for each in results:
        found.add(config, each)
    return found


def crowded() -> list[Arm]:
    """A sweep for tests: a cell as usual, and one that runs out of memory once."""
    return [arm(TINY, {"model.arch": ("fc", f"{__name__}:greedy")})]


def another() -> list[Arm]:
    """A sweep for tests that shares no cell with it."""
    return [arm({**TINY, "model.arch": "fc"}, {"seed": (1, 2)})]


def greedy(num_classes: int) -> nn.Module:
    """A network that finds no memory the first time that it is trained."""
    return Greedy(nn.Flatten(), nn.Linear(64, num_classes, bias=False))


class Greedy(nn.Sequential):
    refused: ClassVar[int] = 0
    refusals: ClassVar[int] = 1

    def forward(self, x: Any) -> Any:
        if torch.is_grad_enabled() and Greedy.refused < Greedy.refusals:
            Greedy.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(experiments, "SWEEPS", {**experiments.SWEEPS, "crowded": crowded, "another": another})
    monkeypatch.setattr(launch_module, "preflight", lambda *_: [])  # a process of its own, for these networks
    monkeypatch.chdir(tmp_path)
    Greedy.refused, Greedy.refusals = 0, 1
    tracking.tracking_mode.cache_clear()
    yield
    tracking.tracking_mode.cache_clear()


def launch(*args: str) -> int:
    return cli.run(main.COMMANDS, "sweeps", ["launch", *args, "--executor", "inline", "--store", "runs"])


# --- cost --------------------------------------------------------------------------------------------


def test_cells_of_a_kind_cost_what_they_took_of_a_card() -> None:
    todo = [CONV, unflatten({"seed": 1, "model.k": 0.3}, CONV), unflatten({"model.arch": "conv2"}, CONV)]
    known = measured(CONV, result(3000), result(4200), result(90_000, device="cpu"))
    hours, unknown = costs(todo, known, gpus=None)
    assert hours == {"GPU": pytest.approx(2 * 0.25)}  # an hour each, a quarter of a card
    assert unknown == 1
    assert costs(todo, known, gpus=1.0)[0] == {"GPU": pytest.approx(2.0)}
    assert costs([CONV], known, gpus=0)[0] == {"CPU": pytest.approx(25.0)}
    assert costs([CONV], measured(CONV, result(3600)), gpus=0) == ({}, 1)  # no CPU has been measured
    threads = unflatten({"train.threads": 4}, CONV)
    assert costs([threads], measured(CONV, result(3600, "cpu")), None)[0] == {"CPU": pytest.approx(4.0)}


def test_the_processors_are_those_of_the_hours() -> None:
    results = [
        result(3600, device) | {"processor": {"model": model}}
        for device, model in (("cpu", "A"), ("a GPU", "B"))
    ]
    known = measured(CONV, *results, result(3600))
    assert known.processors([CONV], ["GPU"]) == ["B"]
    assert known.processors([CONV], costs([CONV], known, gpus=0)[0]) == ["A"]
    assert known.processors([unflatten({"model.arch": "conv2"}, CONV)], ["GPU", "CPU"]) == []


def test_the_price_is_of_an_hour() -> None:
    assert describe({"GPU": 12.5}, 2.0) == "12.5 GPU-hours, $25.00"
    assert "$" not in describe({"GPU": 12.5}, None)


def test_the_line_says_whether_it_is_measured_or_an_estimate(
    here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    estimated = experiments.sweep("depth").gpu_hours
    assert estimated
    assert launch("depth", "--dry-run", "--price", "2") == 0
    line = capsys.readouterr().out.partition("\n")[0]
    for word in ("estimate", f"{estimated:g}", "GPU-hours", "240", f"${2 * estimated:g}"):
        assert word in line
    assert "as measured" not in line
    assert launch("crowded", "--set", "model.arch=fc") == 0
    capsys.readouterr()
    assert launch("another", "--dry-run") == 0  # none of its cells is there, but one of their kind
    line = capsys.readouterr().out.partition("\n")[0]
    assert "CPU" in line
    assert "as measured" in line
    assert processor.describe(torch.device("cpu"), "float32")["model"] in line
    assert "estimate" not in line


# --- a part of a card, or all of it --------------------------------------------------------------------


def test_a_share_grows_with_the_memory_that_was_measured() -> None:
    assert Measured().gpu_share(CONV) == 0.25
    assert Measured().gpu_share(unflatten({"model.arch": "resnet18"})) == 0.5
    for other in ("torchvision/resnet50", "convnext:make", "resnet_deep:make"):
        assert Measured().gpu_share(unflatten({"model.arch": other})) == 1.0
    for part, share in ((0.1, 0.25), (0.3, 0.5), (0.45, 1.0), (0.95, 1.0)):
        assert measured(CONV, result(1, gpu_memory=part), result(1)).gpu_share(CONV) == share
    assert measured(CONV, result(1, gpu_memory=0.9)).gpu_share(unflatten({"model.arch": "conv2"})) == 0.25


def test_what_a_cell_asks_for() -> None:
    with_gpus, without = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 0.0}

    def wanted(config: CellConfig, largest: dict[str, float], gpus: float | None = None) -> Any:
        return capacity.wanted_by(config, Options(gpus=gpus), Measured(), largest)

    assert wanted(CONV, with_gpus) == {"CPU": 1, "GPU": 0.25}
    assert wanted(CONV, with_gpus, gpus=2.0) == {"CPU": 2, "GPU": 2.0}
    assert wanted(CONV, without) == {"CPU": 1, "GPU": 0}
    assert capacity.wanted_by(CONV, Options(gpus=0, ranks=2), Measured(), with_gpus) == {"CPU": 2, "GPU": 0}
    assert wanted(unflatten({"train.device": "cpu"}, CONV), with_gpus) == {"CPU": 1, "GPU": 0}
    assert capacity.alone({"CPU": 1, "GPU": 0.25}, with_gpus) == {"CPU": 1, "GPU": 1}
    assert capacity.alone({"CPU": 1, "GPU": 2.0}, with_gpus) == {"CPU": 1, "GPU": 2}
    assert capacity.alone({"CPU": 1, "GPU": 0}, with_gpus) == {"CPU": 8, "GPU": 0}


def test_wanting_more_than_any_node_has_is_refused() -> None:
    nodes = capacity.Nodes(
        running=({"CPU": 0.0, "GPU": 0.0}, {"CPU": 16.0, "GPU": 0.0}), startable=({"CPU": 8.0, "GPU": 1.0},)
    )
    capacity.check([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 0.0}], Options(), nodes)
    for wanted, options, name in (
        ({"CPU": 1.0, "GPU": 2.0}, Options(gpus=2.0), "--gpus"),
        ({"CPU": 17.0, "GPU": 0.0}, Options(), "train.threads"),
        ({"CPU": 17.0, "GPU": 0.0}, Options(loaders=16), "--loaders"),
        ({"CPU": 16.0, "GPU": 1.0}, Options(), "train.threads"),  # no node has both
    ):
        with pytest.raises(UserError, match=name):
            capacity.check([{"CPU": 1.0, "GPU": 0.0}, wanted], options, nodes)
    with pytest.raises(UserError, match="--first-worker"):
        capacity.check([{"CPU": 1.0, "GPU": 0.0}], Options(), capacity.Nodes(running=nodes.running[:1]))


def test_out_of_memory_is_tried_again_in_the_same_launch(
    here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("crowded") == 0
    assert Greedy.refused == 1
    assert "out of memory" in capsys.readouterr().out
    plan = Store("runs").plan("crowded")
    assert plan is not None
    assert {result["attempts"] for _, result in Store("runs").results(plan["cells"])} == {1, 2}


def test_memory_that_is_short_even_alone_is_a_failure(here: None) -> None:
    Greedy.refusals = 100
    assert launch("crowded") == 1
    assert Greedy.refused == 2
    Greedy.refusals = 0
    assert launch("crowded") == 0  # it was the host's fault: the next launch tries again
