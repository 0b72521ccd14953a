"""W&B gets a finished cell's ticket, offline too, and keeps no copy of it in the home folder."""

from pathlib import Path

import pytest
import wandb

from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Store
from hiddenweights.flat import unflatten
from hiddenweights.sweeps import tracking
from hiddenweights.tickets.ticket import Ticket

SMALL = {"model.arch": "fc", "data.subset": 200, "train.epochs": 1}


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """The artifacts that offline runs log, as they log them."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    tracking.tracking_mode.cache_clear()
    logged: list[wandb.Artifact] = []
    log = wandb.Run.log_artifact

    def watched(run: wandb.Run, artifact: wandb.Artifact) -> wandb.Artifact:
        logged.append(artifact)
        return log(run, artifact)

    monkeypatch.setattr(wandb.Run, "log_artifact", watched)
    yield logged
    tracking.tracking_mode.cache_clear()


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "data").rglob("*") if path.is_file()]


@pytest.mark.parametrize("uri", ["{}/runs", "memory://artifacts"])
def test_a_finished_cells_artifact_is_its_ticket(uri, artifacts, tmp_path):
    store = Store(uri.format(tmp_path))
    store.prepare()
    result = run_cell(unflatten(SMALL), store, trackers=[tracking.WandbTracker])
    (artifact,) = artifacts
    cell = result["cell"]
    assert (artifact.name.partition(":")[0], artifact.type) == (f"ticket-{cell}", "ticket")
    (entry,) = artifact.manifest.entries.values()
    assert entry.path == f"{cell}.ticket"
    content = (tracking.wandb_folder(store) / (entry.local_path or "")).read_bytes()
    assert content == store.ticket(cell)
    assert Ticket.from_bytes(content).record["test_accuracy"] == result["summary"]["test_accuracy"]
    assert copies(tmp_path) == []


def test_a_cell_without_a_ticket_logs_no_artifact(artifacts, tmp_path):
    store = Store(tmp_path / "runs")
    store.prepare()
    run_cell(unflatten({**SMALL, "model.method": "dense"}), store, trackers=[tracking.WandbTracker])
    assert artifacts == []
