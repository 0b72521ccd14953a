"""benchmarks/gpu.py on a CPU, in miniature: its parts run through, so that no time of a GPU is lost."""

import gc
import json
import queue
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import correct, gpu, imagenet, measure, roofline, selection, step, trial
from hiddenweights.cells.store import Store
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.masking import topk


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    # conv4's place, at a hundredth of its work
    monkeypatch.setitem(step.CASES, "conv4", ("conv2", 0.1, (3, 8), 16, 1, "<= 1.10"))
    return tmp_path


def test_the_rates_of_the_card_and_the_step(results):
    peak = gpu.matrix_rate(64, "cpu")
    measure.report("rate", [gpu.share_of_the_matrix_rate("conv4", peak, "cpu")])
    assert all(row["ratio"] > 0 for row in json.loads((results / "rate.json").read_text())["rows"])


def test_steps_and_trials():
    assert len(step.run("conv4")) == 4
    (row,) = selection.sort_against_ours("", [(100,), (3, 4, 3, 3)], rounds=1, goal="")
    assert row.ratio > 0
    rows = trial.on_a_gpu(
        "conv2", step.random_images(3, 8, 40), ("", ""), "cpu", epochs=2, width=0.1, workers=0
    )
    assert all(row.ratio > 0 for row in rows)


def test_the_roofline_counts_each_byte_once():
    assert roofline.forward_bytes([100, 10**6]) == 1_000_100 * 14 + (100 + 2 * (512 + 976)) * 32
    assert roofline.backward_bytes([100, 50]) == 150 * 14
    seconds = {row.what.split(": ")[0]: row.ratio for row in roofline.rows()}
    assert seconds["conv4, 7 layers, forward"] == pytest.approx(10.2, abs=0.1)
    assert seconds["resnet18, 21 layers, forward"] == pytest.approx(47, abs=0.2)
    assert len(roofline.measured("conv2", "cpu", width=0.05)) == 2


def test_what_is_computed_is_compared():
    images = step.random_images(3, 8, 700, test=40)
    rows = [
        *correct.ten_steps(images, "cpu", "conv2", 0.1),
        *correct.selections("cpu", [[(7, 3, 2, 2), (300,)], [(5, 40)]]),
        *(correct.graph_and_eager(images, "cpu", arm, "conv2", 0.1, 3) for arm in correct.ARMS),
        correct.predictions_elsewhere("conv2", images, "cpu", 0.1),
    ]
    assert [row.ratio for row in rows] == [0] * (4 + len(correct.ARMS))  # here the other device is this one


def test_a_selection_that_is_wrong_is_counted(monkeypatch):
    monkeypatch.setattr(topk, "_first_at", lambda bound, scores, n: (torch.arange(n),))
    (row,) = correct.selections("cpu", [[(300,)]])
    assert row.ratio > 0


@pytest.mark.slow(seconds=5)
def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDDENWEIGHTS_STORE", str(tmp_path / "runs"))
    quick = {"model.arch": "fc", "model.width": 0.05, "train.epochs": 1, "train.device": "cpu"}
    cells = [unflatten(quick | {"seed": seed}) for seed in (0, 1)]
    assert gpu.train_cells(0.0, cells) == []
    assert len(gpu.train_cells(60.0, cells[:1])) == 1
    assert gpu.train_sweep("depth", 60.0, "cpu", cells, at_once=1) == [cell_id(cell) for cell in cells]
    assert all(Store(tmp_path / "runs").result(cell_id(cell)) for cell in cells)
    assert gpu.train_cells(60.0, cells) == []


def test_a_cell_that_fails_does_not_stop_the_next_but_is_the_exit_status(monkeypatch, capsys):
    todo, done = queue.Queue(), []
    for place in (0, 1, None):
        todo.put(place)

    def train(seconds, cells):
        if cells == ["bad"]:
            raise ValueError("no such image")
        done.extend(cells)

    monkeypatch.setattr(gpu, "train_cells", train)
    with pytest.raises(SystemExit) as ended:
        gpu._train_from(["bad", "good"], todo, time.time() + 60)
    assert ended.value.code
    assert done == ["good"]
    assert "no such image" in capsys.readouterr().err


def test_figure_3_begins_with_whole_curves_of_one_seed():
    whole = gpu.paper_cells("depth", "somewhere")
    assert len(whole) == 240
    assert all(cell.seed == 0 and cell.data.root == "somewhere" for cell in whole[:48])
    assert {cell.model.arch for cell in whole[:7]} == {"conv2"}
    assert {cell.model.k for cell in whole[:5]} == {0.1, 0.3, 0.5, 0.7, 0.9}
    compared = whole[48 : 48 + 2 * 4 * 3]  # two seeds of four networks: a mask, SGD, Adam
    assert {cell.seed for cell in compared} == {1, 2}
    assert {cell.model.k for cell in compared if cell.model.method != "dense"} == {0.5}
    assert sum(cell.model.method == "dense" for cell in compared) == 16
    assert {cell.model.arch for cell in gpu.paper_cells("resnet18", "somewhere")} == {"resnet18"}


def test_parts_are_run_by_name_and_a_failed_one_stops_no_other(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(gpu, "parts", lambda device: {"bad": lambda: 1 / 0, "good": lambda: done.append(1)})
    assert gpu.main(["bad", "good"], "cpu") == 1
    assert done == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert gpu.main(["other"], "cpu") == 2
    assert "other: no part; choices: bad, good, figure_3, resnet18" in capsys.readouterr().err


@pytest.mark.slow(seconds=5)
def test_trials_at_once_in_every_way(monkeypatch):
    fork = gpu.mp.get_context("fork")  # which has torch, whose import takes seconds
    with monkeypatch.context() as patch:
        patch.setattr(gpu.mp, "get_context", lambda method: fork)
        torch.set_num_threads(1)  # a fork of a process whose threads have computed waits forever for them
        gc.collect()  # or the fork might, and end what has threads in this process alone
        assert gpu._in_processes("conv2", 0.1, 2, "cpu", steps=2) > 0
    monkeypatch.setattr(gpu, "_in_processes", lambda arch, width, count, device, steps: 100.0 * count)
    rows = gpu.trials_at_once("conv2", 0.1, 2, "", "cpu", steps=2)
    assert [row.what for row in rows] == [
        f"conv2, width 0.1: 2 {way} / one" for way in ("processes", "streams")
    ]
    assert rows[0].ratio == 2


def test_it_needs_torch_and_torchvision_alone():
    program = "import sys, benchmarks.gpu; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    packages = {name.partition(".")[0] for name in loaded.split()}
    assert not packages & {
        "ray",
        "wandb",
        "sklearn",
        "pandas",
        "matplotlib",
        "fsspec",
        "orjson",
        "tyro",
        "rich",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to measure")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main() == 1
    assert "no GPU" in capsys.readouterr().err


def test_imagenets_images_and_steps(results, monkeypatch):
    rows = imagenet.decode(rounds=1, count=2)
    assert rows[0].ratio > 0
    monkeypatch.setitem(imagenet.CASES, "resnet50", ("torchvision/resnet50", 0.05, 4, 32, 10))
    ratio, rate, _, share = imagenet.steps_of(
        "resnet50", gpu.matrix_rate(64, "cpu"), "cpu", rounds=1, repeats=1
    )
    assert ratio.ratio > 0
    assert rate.ratio > 0
    assert share.ratio > 0
