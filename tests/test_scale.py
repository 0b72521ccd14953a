"""Ten thousand cells: what a launch and a status do for each must stay small."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hiddenweights.cells.store import Store
from hiddenweights.flat import to_dict
from hiddenweights.identity import short_name
from hiddenweights.sweeps import commands as main
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.progress import Curves, Progress

CELLS = experiments.sweep("quickstart").override({}, {"seed": tuple(range(42))}).cells()
EPOCHS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A thousand finished cells; only their numbers are made up."""
    folder = tmp_path_factory.mktemp("runs")
    record = {f"kept/{layer}.weight": 0.5 for layer in range(20)} | {"epoch": 1, "test_accuracy": 0.5}
    for cell, config in CELLS.items():
        result = {
            "format": 1,
            "cell": cell,
            "name": short_name(config),
            "config": to_dict(config),
            "history": [record] * EPOCHS,
            "summary": {"test_accuracy": config.seed / 100},
            "seconds": 2.0,
            "device": "cpu",
        }
        path = folder / "cells" / cell / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    store = Store(folder)
    store.prepare()
    store.write_plan("quickstart", {"cells": list(CELLS), "axes": {"seed": list(range(42))}})
    return store


def test_a_status_of_a_thousand_cells_costs_a_few_times_what_reading_them_costs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.process_time()
    for path in Path(store.uri).glob("cells/*/result.json"):
        json.loads(path.read_bytes())
    reading = time.process_time() - began
    began = time.process_time()
    assert main.COMMANDS["status"]("quickstart", store=store.uri) == 0
    assert time.process_time() - began < 6 * reading  # 2.8 where it was measured: 1.2 s against 0.43
    printed = capsys.readouterr().out
    assert f"{len(CELLS)} finished" in printed
    assert printed.count("20.5") == 24  # the mean over the seeds, for every point


def test_the_view_of_a_thousand_cells_costs_little() -> None:
    """It is drawn four times a second, beside the launch's own work."""
    progress = Progress("quickstart", CELLS, Curves(CELLS), Console(file=io.StringIO()))
    for cell in list(CELLS)[::2]:
        progress.finished(cell, 0.5, 2.0)
    for cell in list(CELLS)[1:17:2]:
        progress.running(cell, 3)
    began = time.process_time()
    for _ in range(20):
        progress._picture()
    assert (time.process_time() - began) / 20 < 0.02  # 0.001 s on an idle machine
    left = len(CELLS) - len(progress.accuracies)
    eta = progress.eta()
    assert eta is not None
    assert eta == pytest.approx((left - 8 * 3 / EPOCHS) * 2.0 / 8)


def test_the_last_cell_takes_as_long_as_any() -> None:
    progress = Progress("quickstart", CELLS, Curves(CELLS), Console(file=io.StringIO()))
    *others, last = CELLS
    for cell in others[:8]:
        progress.running(cell, 3)
    for cell in others:
        progress.finished(cell, 0.5, 20.0)
    progress.running(last, 0)
    assert progress.eta() == pytest.approx(20.0)


def test_a_running_cell_tells_how_long_its_kind_takes() -> None:
    slow, *quick = list(CELLS)[:3]
    cells = {cell: CELLS[cell] for cell in (slow, *quick)}
    cells[slow] = replace(cells[slow], model=replace(cells[slow].model, width=4.0))
    progress = Progress("quickstart", cells, Curves(cells), Console(file=io.StringIO()))
    progress.running(slow, 0)
    assert progress.eta() is None
    for epoch in range(1, 16):  # it was resumed, so it reports its epochs at once
        progress.running(slow, epoch, 10.0)
    assert progress.eta() == pytest.approx(3 * 10.0 * EPOCHS - 150)  # nothing else is known
    for cell in quick:
        progress.finished(cell, 0.5, 2.0)
    assert progress.eta() == pytest.approx(10.0 * (EPOCHS - 15))
    progress.left(slow)
    assert progress.eta() == pytest.approx(2.0)
