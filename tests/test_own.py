"""What users bring: sweeps in files of their own, run by the installed package from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hiddenweights import own
from hiddenweights.errors import UserError
from hiddenweights.sweeps import experiments

SWEEP = '''
"""Sweeps of a user."""

from hiddenweights.sweeps.declare import declare
from hiddenweights.sweeps.grid import arm

from helper import EPOCHS


@declare(claim="a small network will do", expect="above chance", gpu_hours=0.1)
def k_of_fc():
    """The fraction kept in a small FC network."""
    base = {"model.arch": "fc", "model.width": 0.2, "data.name": "digits", "train.epochs": EPOCHS}
    return [arm(base, {"model.k": (0.3, 0.7), "model.distribution": ("signed_constant", "kaiming_normal")})]


def plain():
    """Two networks over k."""
    axes = {"model.arch": ("fc", "conv2"), "model.k": (0.2, 0.5)}
    return [arm({"train.epochs": 1, "model.width": 0.1}, axes)]


def wrong():
    return {"model.k": 0.5}


def fails():
    return 1 / 0
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the user's files."""
    (tmp_path / "my_sweeps.py").write_text(SWEEP)
    (tmp_path / "helper.py").write_text("EPOCHS = 2\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "hiddenweights", *arguments]
    settings = {"WANDB_MODE": "disabled", "HIDDENWEIGHTS_CACHE": str(folder / "cache")}
    return subprocess.run(
        command, cwd=folder, env=environment | settings, capture_output=True, text=True, check=False
    )


def test_a_sweep_of_ones_own_is_shown_launched_and_drawn(folder: Path) -> None:
    name = "my_sweeps.py:k_of_fc"
    shown = run(folder, "sweeps", "show", name)
    assert "a small network will do" in shown.stdout
    planned = run(folder, "sweeps", "launch", name, "--dry-run")
    assert planned.stdout.splitlines()[-1].startswith("my_sweeps-k_of_fc: 4 cells")
    launched = run(folder, "sweeps", "launch", name, "--executor", "inline")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    again = run(folder, "sweeps", "launch", name, "--executor", "inline")
    assert "0 to train" in again.stdout
    assert run(folder, "sweeps", "status", name).returncode == 0
    drawn = run(folder, "analysis", "figure", name)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    lines = (folder / "figures" / "my_sweeps-k_of_fc.csv").read_text().splitlines()
    assert len(lines) == 5  # two curves of two places
    assert {"kaiming_normal", "signed_constant"} == {line.split(",")[1] for line in lines[1:]}
    (next_,) = (line for line in launched.stdout.splitlines() if line.startswith("next: "))
    words = next_.removeprefix("next: hiddenweights ").split()
    assert run(folder, *words).returncode == 0
    axes = ("--x", "model.k", "--curve", "model.arch", "--panel", "model.distribution")
    assert run(folder, "analysis", "figure", name, *axes).returncode == 0
    text = (folder / "figures" / "my_sweeps-k_of_fc.csv").read_text()
    assert text.splitlines()[1].startswith(("kaiming_normal,fc", "signed_constant,fc"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_sweeps.py:absent", ("absent", "k_of_fc", "plain")),
        ("nowhere.py:sweep", ("nowhere.py",)),
        ("no_such_module:sweep", ("no_such_module",)),
        ("my_sweeps.py:wrong", ("my_sweeps.py:wrong", "arm")),
        ("my_sweeps.py:fails", ("my_sweeps.py:fails", "ZeroDivisionError")),
    ],
)
def test_a_wrong_name_is_one_line(
    name: str, says: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as error:
        experiments.sweep(name)
    assert all(word in str(error.value) for word in says)
    assert "\n" not in str(error.value)


def test_a_package_adds_sweeps_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hiddenweights.sweeps]\ntheirs = their_sweeps:plain\n[hiddenweights.none]\nbroken = absent_one:x\n"
    )
    (tmp_path / "their_sweeps.py").write_text(SWEEP.replace("from helper import EPOCHS", "EPOCHS = 1"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(experiments.sweep("theirs").cells()) == 4
    with pytest.raises(UserError, match="broken of package theirs"):
        own.registered("none")
