"""Launching sweeps: what is missing is trained, once; what failed is said; the exit status tells."""

import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hiddenweights import cli
from hiddenweights.cells.cell import STOPPED_EARLY, failure_record, run_cell
from hiddenweights.cells.inputs import check_inputs
from hiddenweights.cells.store import Store
from hiddenweights.config import NETWORKS, Scalar
from hiddenweights.errors import UserError
from hiddenweights.identity import Resolved
from hiddenweights.sweeps import commands as main
from hiddenweights.sweeps import experiments, tracking
from hiddenweights.sweeps import launch as launch_module
from hiddenweights.sweeps.grid import Arm, arm
from hiddenweights.sweeps.launching import _print_cells
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Curves, Progress, clock, name_what_differs, outcome
from hiddenweights.training.train import Trainer

TINY = {"model.arch": "fc", "model.width": 0.1, "train.epochs": 2}


def tiny() -> list[Arm]:
    """A sweep for tests."""
    return [
        arm(TINY, {"model.k": (0.3, 0.5), "seed": (0, 1)}),
        arm({**TINY, "model.method": "dense"}, {"seed": (0, 1)}),
    ]


def wide() -> list[Arm]:
    """Another, which shares two cells with it."""
    return [arm({**TINY, "model.k": 0.5}, {"seed": (0, 1, 2)})]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(
        experiments, "SWEEPS", {**experiments.SWEEPS, "tiny": tiny, "wide": wide, "none": list}
    )
    monkeypatch.chdir(tmp_path)
    tracking.tracking_mode.cache_clear()
    experiments.memberships.cache_clear()
    yield
    tracking.tracking_mode.cache_clear()
    experiments.memberships.cache_clear()


@pytest.fixture
def _forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that check data are forks, which have torch: to import it takes 3 s.

    One thread: a fork of a process whose threads have computed cannot use them and waits forever.
    """
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")

    def instead(method: str) -> object:
        gc.collect()  # or the fork might, and end what has threads in this process alone
        return fork

    monkeypatch.setattr(multiprocessing, "get_context", instead)


def sweeps(*args: str) -> int:
    return cli.run(main.COMMANDS, "sweeps", args)


def launch(name: str, *args: str) -> int:
    return sweeps("launch", name, "--executor", "inline", "--store", "runs", *args)


def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on, the configs that are really trained."""
    configs: list[Any] = []
    real = Trainer.__init__

    def spy(self: Trainer, config: Any, *rest: Any, **more: Any) -> None:
        configs.append(config)
        real(self, config, *rest, **more)

    monkeypatch.setattr(Trainer, "__init__", spy)
    return configs


def test_a_launch_trains_every_cell_and_a_second_none(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = trained(monkeypatch)
    assert launch("tiny") == 0
    assert len(configs) == 6
    assert launch("tiny") == 0
    assert len(configs) == 6
    plan = Store("runs").plan("tiny")
    assert plan is not None
    assert set(Store("runs").states(plan["cells"]).values()) == {"finished"}


def test_an_axis_made_longer_trains_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch("tiny", "--axis", "seed=0") == 0
    configs = trained(monkeypatch)
    assert launch("tiny", "--axis", "seed=0,1") == 0
    assert [config.seed for config in configs] == [1, 1, 1]


def test_a_launch_says_what_its_figures_no_longer_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("tiny", "--axis", "seed=0") == 0
    assert launch("tiny", "--axis", "seed=0,1", "--where", "seed=0") == 0  # all of it is still there
    assert "last launch" not in capsys.readouterr().out
    assert launch("tiny", "--axis", "seed=0") == 0
    assert "3 cells of the last launch of tiny" in capsys.readouterr().out


def test_a_part_of_a_sweep_is_trained_and_the_sweep_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = trained(monkeypatch)
    assert launch("tiny", "--where", "model.method=dense", "--where", "seed=1") == 0
    assert [(config.model.method, config.seed) for config in configs] == [("dense", 1)]
    plan = Store("runs").plan("tiny")
    assert plan is not None
    assert len(plan["cells"]) == 6


def test_a_part_may_have_several_values_of_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = trained(monkeypatch)
    assert launch("tiny", "--where", "model.k=0.3,1.0", "--where", "seed=1") == 0
    assert sorted((config.model.method, config.model.k, config.seed) for config in configs) == [
        ("dense", 1.0, 1),
        ("edge_popup", 0.3, 1),
    ]


def test_a_cell_of_two_sweeps_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch("tiny") == 0
    configs = trained(monkeypatch)
    assert launch("wide") == 0
    assert [config.seed for config in configs] == [2]


def test_the_sweep_and_train_give_the_same_masks(tmp_path: Path) -> None:
    assert launch("wide", "--set", "seed=0") == 0
    (config,) = experiments.sweep("wide").override({"seed": 0}, {}).cells().values()
    alone = run_cell(config, Store(tmp_path / "alone"))
    swept = Store("runs").result(alone["cell"])
    assert swept is not None
    assert [r["mask_checksum"] for r in swept["history"]] == [r["mask_checksum"] for r in alone["history"]]


def test_two_launches_at_once_train_a_cell_once() -> None:
    torch.set_num_threads(1)  # see `_forks`
    gc.collect()  # or a fork might, and end what has threads in this process alone
    context = multiprocessing.get_context("fork")  # as from two terminals, but for the import of torch
    launches = [context.Process(target=lambda: sys.exit(launch("tiny"))) for _ in range(2)]
    for one in launches:
        one.start()
    for one in launches:
        one.join()
    assert [one.exitcode for one in launches] == [0, 0]
    results = [json.loads(path.read_text()) for path in Path("runs/cells").glob("*/result.json")]
    assert len(results) == 6
    assert [result["attempts"] for result in results] == [1] * 6


def test_a_failing_cell_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trainer.epochs

    def moody(self: Trainer) -> Iterator[Any]:
        if self.config.model.k == 0.3:
            raise ArithmeticError("three is an unlucky number")
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "epochs", moody)
        assert launch("tiny") == 1
    printed = capsys.readouterr().out
    assert "ArithmeticError: three is an unlucky number" in printed
    assert "4/6 cells" in printed
    assert sweeps("status", "tiny", "--store", "runs") == 1
    assert printed.count("unlucky") >= 2
    assert "ArithmeticError: three is an unlucky number" in capsys.readouterr().out
    configs = trained(monkeypatch)
    assert launch("tiny") == 1  # they are not tried again
    assert configs == []
    assert launch("tiny", "--rerun-failed") == 0
    assert len(configs) == 2
    assert sweeps("status", "tiny", "--store", "runs") == 0


def test_what_a_search_found_is_what_another_sweep_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ("--set", "seed=0", "--axis", "optim.lr=loguniform(0.001,1)", "--samples", "3")
    assert launch("wide", *search) == 0
    plan = Store("runs").plan("wide")
    assert plan is not None
    ((_, found),) = plan["winners"].items()
    results = dict(Store("runs").results(plan["cells"])).values()
    best = max(results, key=lambda result: result["summary"]["best_validation_accuracy"])
    assert found == {"optim.lr": best["config"]["optim"]["lr"]}
    results = [*results]
    assert launch("tiny", "--axis", "seed=1", "--tuned", "depth") == 2
    assert launch("tiny", "--axis", "seed=1", "--set", "optim.lr=0.1", "--tuned", "wide") == 2
    configs = trained(monkeypatch)
    assert launch("tiny", "--axis", "seed=1", "--tuned", "wide") == 0
    rates = {config.optim.lr for config in configs if config.model.method == "edge_popup"}
    assert rates == {found["optim.lr"]}
    assert {config.optim.lr for config in configs if config.model.method == "dense"} == {0.1}
    assert "not tuned: fc width=0.1 dense sgd digits" in capsys.readouterr().out
    assert launch("tiny", "--tuned", "wide", "--set", "model.width=0.2") == 2  # for which it has no value

    # A stop, or a launch of a part, forgets nothing that was found.
    with monkeypatch.context() as patch:
        patch.setattr(launch_module, "run", interrupt)
        assert launch("wide", *search[:-1], "4") == 130
    assert winners() == plan["winners"]
    worst = min(results, key=lambda result: result["summary"]["best_validation_accuracy"])
    assert launch("wide", *search, "--where", f"optim.lr={worst['config']['optim']['lr']}") == 0
    assert winners() == plan["winners"]
    for _ in range(2):  # a sweep may take what it has found itself, and again
        assert launch("wide", "--tuned", "wide") == 0


def test_a_cell_that_a_search_stopped_early_is_trained_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells, store = experiments.sweep("wide").cells(), Store("runs")
    stopped = next(iter(cells))
    store.prepare()
    store.fail(stopped, failure_record(STOPPED_EARLY, "behind the others", epoch=1))
    planned = launch_module.plan("wide", cells, store, search=True)
    assert planned.early == {stopped}
    _print_cells(planned, Console())
    listed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert listed == {cell: "stopped" if cell == stopped else "missing" for cell in cells}
    assert launch("wide") == 0
    assert store.finished() == {*cells}


def test_a_cell_whose_turn_alone_is_lost_with_ray_has_not_failed() -> None:
    cells, store = experiments.sweep("wide").override({"seed": 0}, {}).cells(), Store("runs")
    store.prepare()
    progress = Progress("wide", cells, Curves(cells), Console(file=io.StringIO()))
    turns: list[bool] = []

    def execute(group: Any, measured: Any, progress: Progress, alone: bool = False) -> None:
        turns.append(alone)
        for cell, config in group.items():
            if len(turns) == 1:
                progress.failed(cell, "its worker died, again and again")
            elif len(turns) == 3:
                progress.finished(cell, *outcome(run_cell(config, store)))

    launch_module.train(launch_module.plan("wide", cells, store), store, Options(), progress, execute)
    assert turns == [False, True, False]
    assert not progress.failures


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def winners() -> Any:
    return (Store("runs").plan("wide") or {})["winners"]


def test_a_search_needs_a_validation_split() -> None:
    search = ("--axis", "optim.lr=loguniform(0.001,1)", "--set", "data.protocol=paper")
    assert launch("wide", *search) == 2


def test_nan_is_a_failure_with_its_epoch() -> None:
    wild = ("--set", "optim.lr=1e30", "--set", "optim.momentum=0", "--set", "seed=0")
    assert launch("tiny", *wild) == 1
    failures = [json.loads(path.read_text()) for path in Path("runs/cells").glob("*/failure.json")]
    assert failures
    assert {failure["error"] for failure in failures} == {"Diverged"}


def test_a_dry_run_and_a_status_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("tiny", "--dry-run") == 0
    assert capsys.readouterr().out.count("missing ") == 6
    assert sweeps("status", "tiny") == 1
    assert not Path("runs").exists()
    assert launch("tiny", "--axis", "seed=0") == 0
    capsys.readouterr()
    assert launch("tiny", "--dry-run", "--price", "2") == 0
    printed = capsys.readouterr().out
    assert printed.count("missing ") == 3
    assert printed.count("finished ") >= 3
    assert "$" in printed


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["dept"], ["dept", "depth"]),
        (["tiny", "--set", "model.kk=0.5"], ["model.kk", "model.k"]),
        (["tiny", "--set", "model.k=2"], ["model.k", "2"]),
        (["tiny", "--axis", "model.k="], ["model.k"]),
        (["tiny", "--axis", "data.image_size=64,32"], ["data.image_size", "32", "digits"]),
        (["tiny", "--axis", "modle.k=0.5"], ["modle.k", "model.k"]),
        (["tiny", "--set", "seed=0", "--axis", "seed=1,2"], ["seed"]),
        (["tiny", "--set", "seed=0", "--set", "seed=1"], ["seed"]),
        (["none"], ["none", "no cells"]),
        (["none", "--set", "seed=1"], ["none", "no cells"]),
        (["tiny", "--samples", "4"], ["--samples", "--axis"]),
        (["tiny", "--where", "seed=5"], ["--where", "seed", "5", "0, 1"]),
        (["tiny", "--where", "seed=0,5"], ["--where", "seed", "5", "0, 1"]),
        (["tiny", "--where", "seed="], ["--where", "seed"]),
        (["tiny", "--where", "model.kind=dense"], ["model.kind"]),
        (["tiny", "--set", "data.name=cifar10", "--set", "data.root=nowhere"], ["data.root", "nowhere"]),
        (["tiny", "--store", "file/below"], ["store", "below"]),
        (["tiny", "--store", "newer"], ["store", "newer", "format"]),
        (["tiny", "--executor", "rya"], ["executor", "rya", "ray"]),
        (["tiny", "--time-limit", "0"], ["--time-limit", "0"]),
        (["tiny", "--time-limti", "5"], ["--time-limti", "--time-limit"]),
    ],
)
@pytest.mark.usefixtures("_forks")
def test_bad_input_is_one_line_and_status_2(
    args: list[str], names: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("file").write_text("")
    Path("newer").mkdir()
    Path("newer/store.json").write_text('{"format": 2}')
    before = sorted(tmp_path.rglob("*"))
    assert sweeps("launch", *args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for name in names:
        assert name in err
    assert sorted(tmp_path.rglob("*")) == before
    assert not sys.modules.get("ray") or not sys.modules["ray"].is_initialized()


def test_the_listed_cells_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("tiny", "--axis", "optim.lr=0.1,0.3", "--axis", "seed=0", "--dry-run") == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if " missing " in line]
    assert len({*map(tuple, lines)}) == len(lines) == 6
    assert {line[-1] for line in lines} == {"lr=0.1", "lr=0.3"}


def test_names_leave_out_what_follows_from_another_field() -> None:
    rows = [
        {"model.k": 0.5, "data.name": data, "data.augment": augment, "optim.lr": lr, "train.epochs": 2}
        for data, augment in (("cifar10", "crop_flip"), ("mnist", "none"), ("fashion_mnist", "none"))
        for lr in (0.1, 0.3)
    ]
    words = [["fc"] for _ in rows]
    name_what_differs(words, rows, "model.k")
    assert len({*map(tuple, words)}) == len(rows)
    assert words[0] == ["fc", "cifar10", "lr=0.1"]


def test_cells_that_lay_in_other_folders_share_a_curve() -> None:
    there = experiments.sweep("tiny").override({"data.root": "there"}, {}).cells()
    here = experiments.sweep("tiny").override({"seed": 7}, {}).cells()
    assert Curves({**there, **here}).means({}).keys() == Curves(here).means({}).keys()


def test_a_stop_does_not_wait_for_the_data(tmp_path: Path) -> None:
    """Loading them may take minutes, for example with a download."""
    (tmp_path / "slow.py").write_text("import time\ndef slow():\n    time.sleep(60)\n")
    cells = experiments.sweep("tiny").override({"data.name": "slow.py:slow"}, {}).cells()
    main, real = threading.main_thread().ident or 0, signal.signal(signal.SIGUSR1, signal.default_int_handler)
    began, stop = time.monotonic(), threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGUSR1))
    stop.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launch_module.preflight(cells.values(), None)
    finally:
        signal.signal(signal.SIGUSR1, real)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("field", "value"),
    [("model.arch", "conv8"), ("model.width", 1 / 65), ("model.arch", "linear"), ("data.subset", 1_000_000)],
)
@pytest.mark.usefixtures("_forks")
def test_what_the_digits_do_not_fit_stops_the_launch(field: str, value: Scalar) -> None:
    """Before a cell is trained, although most launches with the digits are not tried."""
    whole = experiments.sweep("quickstart").override({field: value}, {})
    with pytest.raises(UserError, match=field if field != "model.arch" else "conv8|linear"):
        launch_module.preflight(whole.cells().values(), None)


def test_small_networks_on_the_digits_need_no_trial() -> None:
    """`_fits_digits` is right about each network that it lets through, at the narrowest width."""
    tried: list[Resolved] = []
    base = experiments.sweep("quickstart")
    for arch in NETWORKS:
        for width in (launch_module.NARROWEST, 1.0):
            one = base.override({"model.arch": arch, "model.width": width, "seed": 0, "model.k": 0.5}, {})
            tried += [config for config in one.cells().values() if launch_module._fits_digits(config)]
    assert {config.model.arch for config in tried} == {"linear", "fc", "conv2", "conv4", "conv6"}
    for config in tried:
        check_inputs(config)


def test_a_check_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "any.py").write_text("")
    cells = experiments.sweep("tiny").override({"data.name": "any.py:any"}, {}).cells()
    # It ends with an error that is not the user's.
    monkeypatch.setattr(launch_module, "check_inputs", os.kill)
    with pytest.raises(UserError, match="ended with status 1"):
        launch_module.preflight(cells.values(), None)


def test_axes_that_name_a_cell_twice_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("tiny", "--axis", "model.k=0.5,0.5", "--dry-run") == 0
    assert "twice" in capsys.readouterr().out.partition("\n")[0]


def test_list_and_show_need_no_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps("list") == 0
    printed = capsys.readouterr().out
    for name in experiments.SWEEPS:
        assert name in printed
    assert sweeps("show", "depth", "--axis", "seed=0") == 0
    assert "Claim:" in (printed := capsys.readouterr().out)
    assert "48 cells" in printed


def test_curves_place_cells_and_average_seeds() -> None:
    cells = experiments.sweep("tiny").cells()
    curves = Curves(cells)
    accuracies = {cell: 0.5 + config.seed / 10 for cell, config in cells.items()}
    means = curves.means(accuracies)
    assert len(means) == 2
    edge, dense = means.values()
    assert edge == {0.3: pytest.approx(0.55), 0.5: pytest.approx(0.55)}
    assert dense == {1.0: pytest.approx(0.55)}


def test_cells_that_differ_in_another_field_are_other_curves() -> None:
    cells = experiments.sweep("study_rates").cells()
    curves = Curves(cells)
    places = [curves.place(cell) for cell in cells]
    assert len(set(places)) == len(cells)
    assert any("lr=0.03" in name for name, _ in places)
    assert all("batch_size" not in name for name, _ in places)


def test_every_curve_has_a_name() -> None:
    cells = experiments.sweep("study_small").cells()
    curves = Curves(cells)
    assert {curves.place(cell)[0] for cell in cells} == {"edge_popup", "random"}


def test_the_clock() -> None:
    assert [clock(8), clock(65), clock(3723)] == ["0:08", "1:05", "1:02:03"]
