"""Several processes that train one cell together: the scores of one alone, and what becomes of deaths."""

import gc
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.config import CellConfig
from hiddenweights.errors import RankDied, UserError
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.images.dataset import epoch_order, shares
from hiddenweights.sweeps import capacity, ray_process
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.ray_work import Work
from hiddenweights.training.ranks import Ranks
from hiddenweights.training.train import Trainer

# 581 digits train, 10 batches per epoch. Of the last one, 5 images, two of four processes have none.
FIELDS = {
    "model.arch": "conv2",
    "model.width": 0.25,
    "data.subset": 646,
    "optim.batch_size": 64,
    "train.epochs": 2,
    "train.precision": "float32",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: a fork of a process whose threads have computed cannot use them and waits forever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cell(**fields: Any) -> CellConfig:
    return unflatten(FIELDS | {name.replace("__", "."): value for name, value in fields.items()})


def _rank(rank: int, count: int, config: CellConfig, folder: Path) -> tuple[list[Any], dict[str, Any]]:
    ranks = Ranks(rank, count, folder / f"meeting{count}", cuda=False) if count > 1 else None
    trainer = Trainer(config, None, None, ranks)
    records = [*trainer.epochs()]
    torch.save(trainer.network.state_dict(), folder / f"{rank}.pt")
    if ranks:
        torch.distributed.destroy_process_group()
    return records, trainer.network.state_dict()


def together(count: int, config: CellConfig, folder: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """Records of the first of `count` processes, and what each has learnt. They are forks of this one."""
    gc.collect()  # or a fork might, and end what has threads in this process alone
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_rank, args=(rank, count, config, folder)) for rank in range(1, count)]
    for other in others:
        other.start()
    records, state = _rank(0, count, config, folder)
    for other in others:
        other.join()
        assert other.exitcode == 0
    return records, [state, *(torch.load(folder / f"{rank}.pt") for rank in range(1, count))]


@pytest.mark.parametrize("fields", [{}, {"model__method": "dense"}, {"model__method": "iterand"}])
def test_scores_of_two_and_four_processes_are_those_of_one(fields: dict[str, Any], tmp_path: Path) -> None:
    config = cell(**fields)
    alone, (expected,) = together(1, config, tmp_path)
    assert len(alone) == 2  # of 10 steps each
    for count in (2, 4) if not fields else (2,):
        records, states = together(count, config, tmp_path)
        for state in states:
            for name, values in expected.items():
                torch.testing.assert_close(state[name], values, rtol=0, atol=1e-5)
                assert torch.equal(state[name], states[0][name])
        for record, reference in zip(records, alone, strict=True):
            assert record["train_loss"] == pytest.approx(reference["train_loss"], rel=1e-4)
            assert record["validation_loss"] == pytest.approx(reference["validation_loss"], rel=1e-4)


def test_every_image_has_its_place_in_one_share() -> None:
    order = epoch_order(103, seed=1, epoch=4)
    whole = [*shares(order, 20)]
    assert [len(batch) for batch in whole] == [20, 20, 20, 20, 20, 3]
    for count in (2, 3, 8):
        parts = zip(*(shares(order, 20, rank, count) for rank in range(count)), strict=True)
        for batch, part in zip(whole, parts, strict=True):
            assert torch.equal(torch.cat(part), batch)
            sizes = [len(share) for share in part]
            assert all(size != 1 for size in sizes)  # BatchNorm has no variance for it
            assert max(sizes) - min(size for size in sizes if size) <= 1


def _disagree(rank: int, folder: Path) -> str:
    ranks = Ranks(rank, 2, folder / "meeting", cuda=False)
    network = nn.BatchNorm1d(2)
    network.running_mean.fill_(rank + 1)  # type: ignore[union-attr, operator]
    ranks.share_buffers(network)
    assert network.running_mean.tolist() == [1, 1]  # type: ignore[union-attr, operator]
    ranks.check_same("masks", "equal")
    try:
        ranks.check_same("masks", f"digest {rank}")
    except RuntimeError as error:
        return str(error)
    finally:
        torch.distributed.destroy_process_group()
    return ""


def test_masks_that_differ_are_noticed_and_buffers_are_the_firsts(tmp_path: Path) -> None:
    gc.collect()  # as in `together`
    other = multiprocessing.get_context("fork").Process(target=_disagree, args=(1, tmp_path))
    other.start()
    assert "masks differ" in _disagree(0, tmp_path)
    other.join()
    assert other.exitcode == 0


def others(first: psutil.Process) -> list[psutil.Process]:
    """The processes that `first` has started to train with it."""

    def trains(child: psutil.Process) -> bool:
        try:
            return "hiddenweights.training.parallel" in child.cmdline()
        except psutil.ZombieProcess:  # a process of an earlier test that has ended
            return False

    return [child for child in first.children() if trains(child)]


def test_a_killed_process_ends_the_attempt_and_the_cell_is_resumed(tmp_path: Path) -> None:
    config, store = cell(train__epochs=30), Store(tmp_path / "runs")
    expected = run_cell(config, Store(tmp_path / "alone"))
    died_at = []

    def kill(record: Any) -> None:
        if record["epoch"] == 3:
            (other,) = others(psutil.Process())
            other.send_signal(signal.SIGKILL)
            died_at.append(time.monotonic())

    with pytest.raises(RankDied, match=r"process 1 of this cell died: SIGKILL"):
        run_cell(config, store, ranks=2, on_record=kill)
    assert time.monotonic() - died_at[0] < 10
    failure = store.failure(cell_id(config))
    assert failure is not None
    assert failure["transient"]

    assert not others(psutil.Process())

    result = run_cell(config, store)
    assert (result["attempts"], result["ranks"]) == (2, 1)
    assert [record["epoch"] for record in result["history"]] == [*range(1, 31)]
    assert result["summary"]["test_accuracy"] == pytest.approx(expected["summary"]["test_accuracy"], abs=0.02)
    assert store.ticket(result["cell"]) is not None


def test_a_process_that_dies_at_its_start_is_named_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Dead(subprocess.Popen[bytes]):
        """It has ended before it is sent anything; the first one waits instead."""

        def __init__(self, arguments: Any, **options: Any) -> None:
            super().__init__(["false"] if started else ["sleep", "60"], **options)
            started.append(self)
            if len(started) > 1:
                self.wait()

    monkeypatch.setattr(subprocess, "Popen", Dead)
    with pytest.raises(RankDied, match="process 2 of this cell died: exit status 1"):
        run_cell(unflatten(FIELDS), Store(tmp_path), ranks=3)
    assert [process.poll() for process in started] == [-signal.SIGKILL, 1]


def test_processes_do_not_outlive_the_first(tmp_path: Path) -> None:
    arguments = [
        word for name, value in FIELDS.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    arguments += ["--train.epochs", "500", "--store", str(tmp_path / "runs"), "--no-track", "--ranks", "2"]
    first = psutil.Popen([sys.executable, "-m", "hiddenweights", "train", *arguments])
    while not [*tmp_path.glob("runs/cells/*/checkpoint/checkpoint.pt")]:  # until both train
        assert first.poll() is None
        time.sleep(0.05)
    (other,) = others(first)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 60
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"gpus": 0.25}, 1),
        ({"gpus": 8}, 8),
        ({"ranks": 2}, 2),
        ({"gpus": 2.5}, r"--gpus: 2\.5"),
        ({"gpus": float("inf")}, r"--gpus: inf"),
        ({"gpus": 8, "ranks": 2}, r"--ranks: 2"),
        ({"gpus": 0.5, "ranks": 2}, r"--ranks: 2"),
    ],
)
def test_a_process_per_gpu(options: dict[str, Any], expected: int | str) -> None:
    if isinstance(expected, int):
        assert Options(**options).processes() == expected
    else:
        with pytest.raises(UserError, match=expected):
            Options(**options)


def test_what_a_cell_asks_of_ray() -> None:
    node = {"CPU": 128.0, "GPU": 8.0}
    images = cell(model__arch="torchvision/resnet50", data__name="folder:imagenet")

    def asked(config: CellConfig, node: dict[str, float], **options: Any) -> tuple[float, float, int]:
        chosen = Options(**options)
        wanted = capacity.wanted_by(config, chosen, Measured(), node)
        return wanted["CPU"], wanted["GPU"], capacity.loaders(config, chosen, wanted)

    assert asked(images, node, gpus=8) == (128, 8, 15)
    assert asked(images, node) == (16, 1, 15)
    assert asked(images, {"CPU": 12.0, "GPU": 8.0}, gpus=8) == (12, 8, 0)
    assert asked(images, {"CPU": 2.0, "GPU": 0.0}, ranks=2) == (2, 0, 0)
    assert asked(images, {"CPU": 4.0, "GPU": 0.0}, ranks=2) == (4, 0, 1)
    assert asked(images, node, loaders=3) == (4, 1, 3)
    assert asked(cell(data__name="mine:images"), node, gpus=2, loaders=3) == (8, 2, 3)
    assert asked(cell(), node, gpus=2) == (2, 2, 0)
    assert asked(cell(), node) == (1, 0.25, 0)


def test_a_cell_that_runs_alone_decodes_with_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs alone because the memory did not suffice: more processes would need more."""
    images = cell(data__name="folder:images")
    work = Work(name="w", cells={"c": images}, store="runs", launched="", options=Options(loaders=2))
    node = {"CPU": 16.0, "GPU": 0.0}
    wanted = capacity.wanted_by(images, work.options, Measured(), node)
    job = ray_process._job(work, "c", wanted, capacity.alone(wanted, node))
    assert (job["resources"]["CPU"], job["loaders"]) == (16, 2)
