"""`sweeps launch --page`: the report is kept while cells finish, and its faults are not the launch's."""

import sys
from pathlib import Path

import pytest

from hiddenweights import cli
from hiddenweights.sweeps import commands, page

SWEEP = """
from hiddenweights.sweeps.grid import arm

def mine():
    base = {"model.arch": "fc", "model.width": 0.1, "train.epochs": 2}
    return [arm(base, {"model.k": (0.3, 0.5), "seed": (0,)})]
"""


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("sweep.py").write_text(SWEEP)


def launch(*more: str) -> int:
    options = ("--executor", "inline", "--store", "runs", *more)
    return cli.run(commands.COMMANDS, "sweeps", ("launch", "sweep.py:mine", *options))


def test_the_last_page_has_every_cell_and_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch() == 0
    assert launch("--page") == 0  # it trains nothing, and ends while the page's process is still starting
    assert "http://127.0.0.1:" in capsys.readouterr().out
    text = Path("figures/report.html").read_text()
    assert "2 finished cells" in text
    assert '<figure id="sweep-mine">' in text


def test_a_page_that_fails_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for python in ("/bin/false", "/no/such/python"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", python)
            assert launch("--page") == 0
        assert "page" in capsys.readouterr().out


def test_without_the_analysis_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert launch("--page") == 2
    assert "hiddenweights[analysis]" in capsys.readouterr().err
    assert not Path("runs").exists()
