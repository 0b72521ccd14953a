"""The masks on the page: read from tickets without torch, and the same as torch reads them."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hiddenweights.analysis import masks
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.specs import SUBNETWORK
from hiddenweights.analysis.table import Table
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.errors import StoreAway, Unreachable
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.tickets.ticket import Ticket

BASE = {"model.arch": "conv2", "model.width": 0.1, "train.epochs": 1, "model.k": 0.3, "data.subset": 300}
CELLS = [
    unflatten({**BASE, "seed": seed, "model.distribution": "kaiming_normal", "model.scaled": seed == 1})
    for seed in range(3)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three small networks, planned as `quickstart`."""
    store = Store(str(tmp_path_factory.mktemp("masks") / "store"))
    store.prepare()
    for cell in CELLS:
        run_cell(cell, store)
    store.write_plan("quickstart", {"name": "quickstart", "cells": [*map(cell_id, CELLS)], "axes": {}})
    return store


def points(table: Table) -> pd.DataFrame:
    """The cells at one place of one curve."""
    rows = table.cells[["cell", "seed", "test_accuracy"]].rename(columns={"test_accuracy": "y"})
    same = {"panel": "Conv2", "curve": "kaiming", "x": 30.0, "kind": SUBNETWORK, "validation": np.nan}
    return rows.assign(**same)


def tickets(store: Store) -> list[Ticket]:
    return [Ticket.from_bytes(store.ticket(cell_id(cell)) or b"") for cell in CELLS]


def test_the_overlap_is_that_of_the_tickets(store: Store) -> None:
    table = fetch(store.uri)
    found = masks.overlaps(points(table), table).set_index("layer")
    seen = [ticket.masks for ticket in tickets(store)]
    for name, mask in seen[0].items():
        both = sum(int((a[name] & b[name]).sum()) for a, b in itertools.pairwise(seen))
        kept = int(mask.sum())  # as many in each, for the same k
        assert found.loc[name, "both"] == pytest.approx(100 * both / (2 * kept))
        assert found.loc[name, "chance"] == pytest.approx(100 * kept / mask.numel())
    whole = found.loc[masks.ALL]
    assert whole["seeds"] == 3
    assert whole["chance"] == pytest.approx(30, abs=0.5)
    assert whole["low"] < whole["chance"] < whole["high"]
    assert (found["high"] - found["low"]).drop(masks.ALL).min() > whole["high"] - whole["low"]


def test_the_first_layer_is_that_of_training(store: Store) -> None:
    table = fetch(store.uri)
    for cell, ticket in zip(CELLS, tickets(store), strict=True):
        rows = points(table)
        (shown,) = masks.first_layers(rows[rows["cell"] == cell_id(cell)], table)
        weights = ticket.weights()[shown.layer].numpy()
        assert np.array_equal(shown.weights, weights)
        assert np.array_equal(shown.masked, weights * ticket.masks[shown.layer].numpy())


def test_a_mosaic_shows_signs_zeros_and_gaps() -> None:
    filters = np.zeros((3, 1, 1, 1), np.float32)
    filters[:2, 0, 0, 0] = -2, 2
    picture = masks.mosaic(filters, columns=2, rows=2)
    height, width, _ = picture.shape
    corners = [picture[y, x, 0] for y in (0, height - 1) for x in (0, width - 1)]
    assert corners[:3] == [0.0, 1.0, 0.5]
    assert np.isnan(corners[3])
    assert np.isnan(picture[0, width // 2]).all()


@pytest.mark.parametrize("error", [Unreachable, StoreAway, PermissionError])
def test_a_ticket_that_cannot_be_read_costs_the_report_only_the_masks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def away(self: Store, cell: str) -> bytes | None:
        raise error("503 Slow Down")

    monkeypatch.setattr(Store, "ticket", away)
    forget()
    assert main(["report", "--no-cache", "--from", store.uri, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.html").read_text()
    assert cell_id(CELLS[0]) in text
    assert "data:image/png;base64," not in text


def forget() -> None:
    """Forget the tickets that were read."""
    for cached in (masks._read, masks._compare, masks._first_layer):
        cached.cache_clear()


def test_the_page_shows_them_and_does_without(store: Store, tmp_path: Path) -> None:
    assert main(["report", "--no-cache", "--from", store.uri, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.html").read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "of 1 points lie within the range" in text
    for cell in CELLS:
        path = Path(store.uri) / "cells" / cell_id(cell) / "ticket.ticket"
        path.write_bytes(path.read_bytes()[:-1])
    forget()
    assert main(["report", "--no-cache", "--from", store.uri, "--out", str(tmp_path / "out")]) == 0
    assert "data:image/png;base64," not in (tmp_path / "out/report.html").read_text()
