"""What users bring: sweeps in files of their own, run by the installed package from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from analysis_stores import config, result, write_store

from hiddenweights import own
from hiddenweights.__main__ import main
from hiddenweights.claims import registry
from hiddenweights.errors import UserError
from hiddenweights.identity import cell_id, resolve
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


def test_a_sweep_of_ones_own_is_shown_launched_and_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes are those that would not work if only this one knew the sweep."""
    name = "my_sweeps.py:k_of_fc"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HIDDENWEIGHTS_CACHE", str(folder / "cache"))
    assert main(["sweeps", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "a small network will do" in shown
    assert f"hiddenweights sweeps launch {name}\n" in shown
    planned = run(folder, "sweeps", "launch", name, "--dry-run")
    assert planned.stdout.splitlines()[-1].startswith("my_sweeps-k_of_fc: 4 cells")
    launched = run(folder, "sweeps", "launch", name, "--executor", "inline")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert main(["sweeps", "launch", name, "--executor", "inline"]) == 0
    assert "0 to train" in capsys.readouterr().out
    assert main(["sweeps", "status", name]) == 0
    assert main(["analysis", "figure", name]) == 0
    lines = (folder / "figures" / "my_sweeps-k_of_fc.csv").read_text().splitlines()
    assert len(lines) == 5  # two curves of two places
    assert {"kaiming_normal", "signed_constant"} == {line.split(",")[1] for line in lines[1:]}
    (next_,) = (line for line in launched.stdout.splitlines() if line.startswith("next: "))
    words = next_.removeprefix("next: hiddenweights ").split()
    drawn = run(folder, *words)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    axes = ("--x", "model.k", "--curve", "model.arch", "--panel", "model.distribution")
    assert main(["analysis", "figure", name, *axes]) == 0
    text = (folder / "figures" / "my_sweeps-k_of_fc_by_k_curve_arch_panel_distribution.csv").read_text()
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


CLAIM = """
from hiddenweights.claims.contrasts import Claim, compare, pick


def contrasts(cells):
    yield from compare(pick(cells, k=0.7), pick(cells, k=0.3), ["model.k"], "minus k = 0.3")


MORE = Claim("more", "More is better.", "k = 0.7 minus k = 0.3 is above 0.", "mine", contrasts, data=None)
LESS = Claim("less", "Less is better.", "never", "mine", contrasts, data=None)
BOTH = [MORE, LESS]
WRONG = 3
ODD = Claim("a/b", "", "", "mine", contrasts)
"""


def test_a_claim_of_ones_own_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [config(model__k=k, seed=seed) for k in (0.3, 0.7) for seed in range(4)]
    results = [result(cell, 0.5 + resolve(cell).model.k * (1 / 5 + cell.seed / 1000)) for cell in cells]
    write_store(tmp_path / "runs", results, {"mine": [cell_id(cell) for cell in cells]})
    (tmp_path / "my_claims.py").write_text(CLAIM)
    monkeypatch.chdir(tmp_path)
    assert main(["analysis", "claims", "--claim", "my_claims.py:MORE", "--no-cache"]) == 0
    out = capsys.readouterr().out
    assert "supported                  more: More is better." in out
    assert "on claims of your own: 1 supported" in out
    # A package's claims need no option.
    distribution(tmp_path, "[hiddenweights.claims]\ntheirs = my_claims:BOTH\n", monkeypatch)
    assert main(["analysis", "claims", "--no-cache"]) == 0
    out = capsys.readouterr().out
    assert "supported                  more: More is better." in out
    assert "less: Less is better." in out
    assert registry.find("more").sweep == "mine"
    for name, says in (("WRONG", "not a Claim"), ("BOTH", "2 claims"), ("ODD", "a/b"), ("NONE", "MORE")):
        with pytest.raises(UserError, match=says):
            registry.find(f"my_claims.py:{name}")
    with pytest.raises(UserError, match="did you mean 'more'"):
        registry.find("mor")


def distribution(folder: Path, entry_points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package `theirs` with these entry points."""
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(str(folder))


def test_a_package_adds_sweeps_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_sweeps.py").write_text(SWEEP.replace("from helper import EPOCHS", "EPOCHS = 1"))
    broken = "[hiddenweights.none]\nbroken = absent_one:x\n"
    distribution(tmp_path, f"[hiddenweights.sweeps]\ntheirs = their_sweeps:plain\n{broken}", monkeypatch)
    assert len(experiments.sweep("theirs").cells()) == 4
    with pytest.raises(UserError, match="broken of package theirs"):
        own.registered("none")
