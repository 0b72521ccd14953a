"""What a host says of itself, to `doctor` and to a cell that was promised a GPU."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from hiddenweights import cli
from hiddenweights.cells.store import Store
from hiddenweights.config import DataConfig
from hiddenweights.flat import to_dict, unflatten
from hiddenweights.identity import cell_id
from hiddenweights.sweeps import commands, host, trial

CONFIG = unflatten({"model.arch": "fc", "train.epochs": 1, "data.subset": 200})
CELL = cell_id(CONFIG)


def doctor(*arguments: str) -> int:
    return cli.run(commands.COMMANDS, "hiddenweights sweeps", ["doctor", *arguments])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def test_this_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--store", str(tmp_path / "runs")) == 0
    printed = capsys.readouterr().out
    for word in (torch.__version__.partition("+")[0], "writable", "digits", "offline", "GiB"):
        assert word in printed


def test_what_is_amiss_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "free_disk", lambda folder: 1.5)
    assert doctor("--store", str(tmp_path / "runs"), "--data", "cifar10", "--root", "/nowhere") == 1
    printed = capsys.readouterr().out
    assert "! data: /nowhere" in printed
    assert "! free disk: 2 GiB" in printed


@pytest.mark.parametrize("name", ["cifar10", "torchvision/SVHN", "hf:no-one/nothing"])
def test_the_doctor_downloads_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the folder has something else in it."""
    attempts = []

    def refuse(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "other").touch()
    trouble = host.data_trouble(DataConfig(name=name, root=str(tmp_path / "root")))
    assert name.rpartition("/")[2] in str(trouble)
    assert attempts == []
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["other"]


def test_a_store_that_the_host_does_not_share(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    assert "must share" in str(host.store_trouble(store))
    assert not (tmp_path / "runs").exists()
    store.prepare()
    assert host.store_trouble(store) is None


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none, and then two launches could train one cell."""
    store = Store(tmp_path / "runs")
    store.prepare()

    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert os.strerror(errno.ENOLCK) in str(host.store_trouble(store))


def test_a_bucket_that_may_be_read_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://a-bucket/runs")
    store.prepare()
    assert host.store_trouble(store) is None

    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    assert "AccessDenied" in str(host.store_trouble(store))


def worker(folder: Path, gpu: float, time_limit: float | None = None) -> Any:
    """A worker of Ray, without Ray, and a cell for it."""
    store = Store(folder / "runs")
    store.prepare()
    job = {
        "cell": CELL,
        "config": to_dict(CONFIG),
        "resources": {"CPU": 1.0, "GPU": gpu},
        "store": store.uri,
        "sweep": "",
        "launched": "",
        "time_limit": time_limit,
        "patience": 1.0,
        "ranks": 1,
        "loaders": 0,
    }
    made = trial.CellTrial.__new__(trial.CellTrial)
    made.setup({"job": json.dumps(job), "report_every": 0.0, "code": "{}", "wandb_mode": ""})
    return made


def test_a_cell_that_was_given_a_gpu_never_trains_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(host, "driver", lambda: "driver 470.82.01, up to CUDA 11.4")
    monkeypatch.setattr(trial, "UNFIT_PAUSE", 0.0)
    unfit = worker(tmp_path, gpu=0.25)
    for _ in range(2):  # cells
        report = unfit.step()
        assert (report["state"], report["done"]) == ("unfit", True)
        assert "\n" not in report["message"]
        for word in ("0.25 GPU", "driver 470.82.01", "CUDA 11.4", torch.__version__):
            assert word in report["message"]
    failure = Store(tmp_path / "runs").failure(CELL)
    assert failure is not None
    assert failure["transient"]  # the next launch tries it again
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert worker(tmp_path, gpu=0.0).step()["state"] in ("running", "finished")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # nor on a GPU without being given one


def test_the_time_limit_ends_with_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(trial.os, "_exit", killed.append)
    waits = worker(tmp_path, gpu=0.0, time_limit=0.2)
    store = Store(tmp_path / "runs")
    with store.lease(CELL):  # of another launch
        assert waits.step()["state"] == "busy"
        time.sleep(0.4)  # as it does until Tune has another cell for it
    assert killed == []
    assert store.failure(CELL) is None
