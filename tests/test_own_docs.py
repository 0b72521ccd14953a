"""The example of docs/own.md: its files in an empty folder, run by the installed package on Ray."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hiddenweights import own
from hiddenweights.__main__ import main
from hiddenweights.cells.store import Store

PAGE = Path(__file__).parents[1] / "docs/own.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files of the page, as the present one."""
    for name, text in re.findall(
        r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HIDDENWEIGHTS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_sweep_of_ones_own_method_and_data_on_ray(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 1})  # one worker: each takes 6 s to start
    command = [sys.executable, "-m", "hiddenweights", "sweeps", "launch", "my_sweeps.py:compare"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_data.py:circles: 2 classes, 200 training and 100 test images of 1x12x12" in done.stdout

    results = [result for _, result in Store("runs").results(Store("runs").finished())]
    methods = [own.plain(result["config"]["model"]["method"]) for result in results]
    assert sorted(methods) == ["edge_popup"] * 6 + ["my_masks.py:Smooth"] * 6
    assert len({result["data_digest"] for result in results}) == 1

    assert main(["sweeps", "launch", "my_sweeps.py:compare", "--dry-run"]) == 0  # the same cells
    assert "0 to train" in capsys.readouterr().out
    smooth = ["--where", "model.method=my_masks.py:Smooth"]
    assert main(["sweeps", "launch", "my_sweeps.py:compare", *smooth, "--dry-run"]) == 0
    assert "my_sweeps-compare: 6 cells" in capsys.readouterr().out
    assert main(["analysis", "claims", "--claim", "my_claims.py:SMOOTH"]) == 0
    assert "smooth: Smoothed scores find better subnetworks." in capsys.readouterr().out
    assert main(["sweeps", "settle", "my_claims.py:SMOOTH", "--budget", "10m", "--dry-run"]) in (0, 1)
    assert main(["analysis", "figure", "my_sweeps.py:compare"]) == 0
    lines = (folder / "figures/my_sweeps-compare.csv").read_text().splitlines()
    assert len(lines) == 5  # two curves of two places
