"""`sweeps status --watch`: a line per change, or in place on a terminal; q and Ctrl-C end it."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from analysis_stores import grid, result, write_store

from hiddenweights import cli
from hiddenweights.cells.cell import STOPPED_EARLY, failure_record
from hiddenweights.cells.store import Store, Unreachable
from hiddenweights.sweeps import commands, status

CELLS = [result(cell) for cell in grid(archs=("conv2",), ks=(0.5,), seeds=(0, 1, 2))[:3]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two of three cells."""
    return write_store(tmp_path / "store", CELLS[:2], {"depth": [cell["cell"] for cell in CELLS]})


def test_a_store_that_does_not_exist_is_said(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, lacks in ((tmp_path / "misspelled", True), (store, False)):
        assert cli.run(commands.COMMANDS, "sweeps", ["status", "depth", "--store", str(folder)]) == 1
        printed = capsys.readouterr().out
        assert ("not exist" in printed) == (str(folder) in printed) == lacks
    assert not (tmp_path / "misspelled").exists()


def test_a_line_per_change_until_every_cell_is_finished(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[float] = []
    real = status.Standing.look

    def look(self: status.Standing) -> None:
        if len(looks) == 1:
            raise Unreachable("503")
        real(self)

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            write_store(store, CELLS[2:])

    monkeypatch.setattr(status.time, "sleep", sleep)
    monkeypatch.setattr(status.Standing, "look", look)
    assert cli.run(commands.COMMANDS, "sweeps", ("status", "depth", "--store", str(store), "--watch")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "2 finished" in lines[0]
    assert "503" in lines[1]
    assert "3 finished" in lines[3]
    assert len(looks) == 3


def test_a_cell_that_a_search_stopped_has_not_failed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(store).fail(CELLS[2]["cell"], failure_record(STOPPED_EARLY, "behind the others", epoch=1))
    assert cli.run(commands.COMMANDS, "sweeps", ("status", "depth", "--store", str(store))) == 0
    printed = capsys.readouterr().out
    assert "2 finished, 0 running, 0 failed, 0 stopped, 0 missing, 1 stopped early" in printed
    assert "behind" not in printed


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_on_a_terminal_a_key_ends_it(store: Path, key: bytes) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hiddenweights",
            "sweeps",
            "status",
            "depth",
            "--store",
            str(store),
            "--watch",
        ],
        stdin=theirs,
        stdout=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),  # the terminal is theirs alone
    )
    os.close(theirs)
    seen = b""
    while b"q ends" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, key)
    assert process.wait(30) == 0
    os.close(ours)
    assert b"2 finished" in seen
    assert b"test accuracy" in seen
