"""One cell from claim to result: trained once, resumed exactly, its failures on record."""

import errno
import threading
from pathlib import Path

import fsspec
import pytest

from hiddenweights.cells import cell as cell_module
from hiddenweights.cells import files
from hiddenweights.cells.cell import Attempt, cell_epochs, run_cell
from hiddenweights.cells.store import Busy, Checkpoint, Json, Store, StoreAway
from hiddenweights.config import CellConfig
from hiddenweights.flat import from_dict, unflatten
from hiddenweights.identity import cell_id, resolve
from hiddenweights.records import Record
from hiddenweights.training import train
from hiddenweights.training.train import Trainer


def config(**fields: str | float) -> CellConfig:
    base = {"model.arch": "fc", "model.width": 0.1, "train.epochs": 4, "data.subset": 200}
    return unflatten(base | {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.prepare()
    return store


@pytest.fixture
def every_epoch_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)


class Notebook:
    """A tracker that remembers."""

    made: list["Notebook"]

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.records, self.ends = attempt, list[Record](), list[Json | None]()
        type(self).made.append(self)

    def log(self, record: Record) -> None:
        self.records.append(record)

    def finish(self, result: Json | None) -> None:
        self.ends.append(result)


@pytest.fixture
def notebook() -> type[Notebook]:
    return type("Fresh", (Notebook,), {"made": []})


def masks(result: Json) -> list[str]:
    return [record["mask_checksum"] for record in result["history"]]


def test_a_result_tells_all(store: Store) -> None:
    seen: list[Record] = []
    result = run_cell(config(), store, on_record=seen.append)
    assert result == store.result(cell_id(config()))
    assert result["cell"] == cell_id(config())
    assert resolve(from_dict(result["config"])) == resolve(config())
    assert result["history"] == seen
    assert [record["epoch"] for record in seen] == [1, 2, 3, 4]
    assert result["summary"]["test_accuracy"] == seen[-1]["test_accuracy"]
    best = max(record["validation_accuracy"] for record in seen)
    assert result["summary"]["best_validation_accuracy"] == best
    assert {record["weights_checksum"] for record in seen} == {result["initial_weights_checksum"]}
    assert not any("/" in name for name in result["summary"])
    assert not (store.local / "cells" / result["cell"] / "checkpoint").exists()  # type: ignore[operator]


def test_a_finished_cell_is_never_trained_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_cell(config(), store)
    monkeypatch.setattr(cell_module, "_trainer", None)
    assert run_cell(config(), store) == first


def test_the_same_cell_twice_has_the_same_masks(tmp_path: Path) -> None:
    once, again = (run_cell(config(), Store(tmp_path / name)) for name in ("a", "b"))
    assert masks(once) == masks(again)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_stopped_cell_goes_on_where_it_was(where: str, tmp_path: Path, notebook: type[Notebook]) -> None:
    fsspec.filesystem("memory").store.clear()
    store = Store(tmp_path / "runs" if where == "local" else "memory://bucket/runs")
    epochs = cell_epochs(config(), store, trackers=[notebook])
    assert [next(epochs)["epoch"], next(epochs)["epoch"]] == [1, 2]
    with pytest.raises(Busy):
        run_cell(config(), store)
    epochs.close()
    result = run_cell(config(), store, trackers=[notebook])
    first, second = notebook.made
    assert (first.attempt.number, second.attempt.number, result["attempts"]) == (1, 2, 2)
    assert first.ends == [None]
    assert second.ends == [result]
    assert second.records == result["history"]
    assert second.records[:2] == first.records  # replayed and not trained again: equal to the second
    assert masks(result) == masks(run_cell(config(), Store(tmp_path / "undisturbed")))


def test_a_cell_that_diverges_is_on_record(store: Store, notebook: type[Notebook]) -> None:
    wild = config(optim__lr=1e30, model__method="dense", model__arch="fc", optim__momentum=0.0)
    with pytest.raises(Exception, match="finite"):
        run_cell(wild, store, trackers=[notebook])
    failure = store.failure(cell_id(wild))
    assert failure is not None
    assert failure["error"] == "Diverged"
    assert not failure["transient"]
    assert failure["message"] in failure["traceback"]
    assert store.states([cell_id(wild)]) == {cell_id(wild): "failed"}
    assert all(tracker.ends == [None] for tracker in notebook.made)


def test_a_fault_of_the_host_is_not_the_cells(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Trainer) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "epochs", full)
        with pytest.raises(OSError, match="space"):
            run_cell(config(), store, patience=0)
    failure = store.failure(cell_id(config()))
    assert failure is not None
    assert failure["transient"]
    run_cell(config(), store)
    assert store.failure(cell_id(config())) is None


@pytest.mark.usefixtures("every_epoch_saved")
def test_a_store_that_goes_away_is_waited_for(
    store: Store, tmp_path: Path, notebook: type[Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "POLL", 0.05)
    gone, moments = tmp_path / "gone", list[Path]()

    def come_back() -> None:
        moments.extend(tmp_path.iterdir())
        gone.rename(tmp_path / "runs")

    epochs = cell_epochs(config(), store, trackers=[notebook])
    assert [next(epochs)["epoch"], next(epochs)["epoch"]] == [1, 2]
    (tmp_path / "runs").rename(gone)
    threading.Timer(0.5, come_back).start()
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]  # from the checkpoint, then new ones
    result = store.result(cell_id(config()))
    assert result is not None
    assert moments == [gone]  # nothing was made in its place
    assert [tracker.ends for tracker in notebook.made] == [[None], [result]]
    undisturbed = run_cell(config(), Store(tmp_path / "undisturbed"))
    assert masks(result) == masks(undisturbed)
    folder = tmp_path / "runs" / "cells" / result["cell"]
    assert {path.name for path in folder.iterdir()} == {"result.json", "ticket.ticket"}


@pytest.mark.usefixtures("every_epoch_saved")
def test_a_store_that_was_away_for_a_moment_is_not_the_cells_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back when one looks: what says so is the path of the file that was missing."""
    monkeypatch.setattr(files, "POLL", 0.05)
    real, missed = Checkpoint.save, list[int]()

    def save(self: Checkpoint) -> None:
        missed.append(len(missed))
        if len(missed) == 2:
            assert store.local
            raise FileNotFoundError(errno.ENOENT, "not there", str(store.local / "cells"))
        real(self)

    monkeypatch.setattr(Checkpoint, "save", save)
    result = run_cell(config(), store)
    assert [record["epoch"] for record in result["history"]] == [1, 2, 3, 4]
    assert result["attempts"] == 1
    assert store.failure(result["cell"]) is None


@pytest.mark.usefixtures("every_epoch_saved")
def test_a_store_that_stays_away_ends_the_wait_and_loses_nothing(store: Store, tmp_path: Path) -> None:
    epochs = cell_epochs(config(), store, patience=0.1)
    next(epochs)
    (tmp_path / "runs").rename(tmp_path / "gone")
    with pytest.raises(StoreAway, match="runs"):
        next(epochs)
    with pytest.raises(StoreAway):
        run_cell(config(), store, patience=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


def test_the_thread_count_is_the_configs(store: Store) -> None:
    import torch

    torch.set_num_threads(2)
    run_cell(config(train__epochs=1), store)
    assert torch.get_num_threads() == 1


def test_the_papers_protocol_has_no_best_epoch(store: Store) -> None:
    result = run_cell(config(data__protocol="paper", train__epochs=1), store)
    assert "best_validation_accuracy" not in result["summary"]


@pytest.mark.parametrize("call", ["make", "log", "finish"])
def test_a_tracker_never_costs_a_cell(call: str, store: Store) -> None:
    class Broken:
        def __init__(self, attempt: Attempt) -> None:
            self.at("make")

        def at(self, name: str) -> None:
            if name == call:
                raise RuntimeError("the server answers nonsense")

        def log(self, record: Record) -> None:
            self.at("log")

        def finish(self, result: object) -> None:
            self.at("finish")

    tracked = config(train__epochs=2)
    result = run_cell(tracked, store, trackers=[Broken])
    assert len(result["history"]) == 2
    assert store.states([cell_id(tracked)]) == {cell_id(tracked): "finished"}
    assert store.failure(cell_id(tracked)) is None
