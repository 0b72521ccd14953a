"""benchmarks/gpu.py on a CPU, in miniature: its parts run through, so that no time of a GPU is lost."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, measure, selection, step, trial


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    # conv4's place, at a hundredth of its work
    monkeypatch.setitem(step.CASES, "conv4", ("conv2", 0.1, (3, 8), 16, 1, "<= 1.10"))
    return tmp_path


def test_the_rates_of_the_script_the_card_and_the_step(results):
    images = step.random_images(3, 32, 40)
    rows = [gpu.straightforward_rate("conv2", images, "cpu", workers=0)]
    peak = gpu.matrix_rate(64, "cpu")
    rows.append(gpu.share_of_the_matrix_rate("conv4", peak, "cpu"))
    measure.report("rate", rows)
    assert all(row["ratio"] > 0 for row in json.loads((results / "rate.json").read_text())["rows"])


def test_steps_and_trials(results):
    assert len(step.run("conv4")) == 4
    (row,) = trial.run("cifar10", "conv2", 0.1, 1, "cpu", step.random_images(3, 8, 40))
    assert row.ratio > 0
    (row,) = selection.sort_against_ours("", [(100,), (3, 4, 3, 3)], rounds=1, goal="")
    assert row.ratio > 0


def test_predictions_on_another_device():
    row = gpu.predictions_elsewhere("conv2", step.random_images(3, 8, 200), "cpu", width=0.1)
    assert row.ratio == 0  # here the other device is this one


@pytest.mark.slow
def test_trials_at_once_in_every_way(monkeypatch):
    assert gpu._in_processes("conv2", 0.1, 1, "cpu", steps=2) > 0  # one: each is an import of torch
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
