"""The published study: its files agree with each other, and with the sweeps that made them."""

import csv
import tarfile
from pathlib import Path

import pytest

from hiddenweights.analysis.table import FROZEN
from hiddenweights.cells.store import Store
from hiddenweights.sweeps import experiments, study

ROOT = Path(__file__).parents[1]
STORE = ROOT / "docs" / "results" / "store"


def test_every_published_result_is_of_a_cell_of_the_study() -> None:
    cells: set[str] = set()
    for name in experiments.SWEEPS:
        if name.startswith("study"):
            cells |= experiments.sweep(name).cells().keys()
    finished = Store(STORE).finished()
    assert finished
    assert finished <= cells


def test_the_small_study_is_compared_with_what_was_published() -> None:
    results = dict(Store(STORE).results(experiments.sweep("study_small").cells()))
    ours = {
        (100 * result["config"]["model"]["k"], result["config"]["model"]["method"] == "random"): 100
        * result["summary"]["test_accuracy"]
        for result in results.values()
    }
    with open(ROOT / "analysis" / "study" / "study_small.csv") as lines:
        rows = list(csv.DictReader(lines))
    published = {(float(row["x"]), row["curve"].startswith("random")): float(row["y"]) for row in rows}
    assert published == pytest.approx(ours)


def test_a_chosen_rate_is_the_best_of_its_candidates_on_validation() -> None:
    cells = {
        cell: config
        for name in ("study_rates", "study_rates_more", "study_rates_wide", "study_rates_deep")
        for cell, config in experiments.sweep(name).cells().items()
    }
    found: dict[tuple[str, str, float, str], dict[float, float]] = {}
    for cell, result in Store(STORE).results(Store(STORE).finished() & cells.keys()):
        config = cells[cell]
        dense = config.model.method == "dense"
        side = config.optim.optimizer if dense else config.model.method
        rates = found.setdefault((config.data.name, config.model.arch, config.model.width, str(side)), {})
        rates[result["config"]["optim"]["lr"]] = result["history"][-1]["validation_accuracy"]
    for key, rate in study.CHOSEN.items():
        assert len(found[key]) > 1
        assert rate == max(found[key], key=found[key].__getitem__)


def test_a_published_result_holds_all_of_its_epochs_and_weights_that_never_changed() -> None:
    for cell, result in Store(STORE).results(Store(STORE).finished()):
        history = result["history"]
        assert [record["epoch"] for record in history] == [*range(1, 11)], cell
        if result["config"]["model"]["method"] in FROZEN:  # not dense, and not iterand, which redraws
            checksums = {record["weights_checksum"] for record in history}
            assert checksums == {result["initial_weights_checksum"]}, cell


def test_figure_3_is_published_with_the_results_behind_it(tmp_path: Path) -> None:
    published = ROOT / "docs" / "results" / "figure_3"
    with tarfile.open(published / "store.tar.xz") as files:
        files.extractall(tmp_path, filter="data")
    store = Store(tmp_path / "figure_3")
    finished = store.finished()
    assert finished
    sweeps = ("depth", "resnet18")
    assert finished <= {cell for sweep in sweeps for cell in experiments.sweep(sweep).cells()}
    accuracies = {}
    for cell, result in store.results(finished):  # each with its checksum
        assert [record["epoch"] for record in result["history"]] == [*range(1, 101)]
        accuracies[cell] = 100 * result["history"][-1]["test_accuracy"]
        if result["config"]["model"]["method"] != "dense":
            checksums = {record["weights_checksum"] for record in result["history"]}
            assert checksums == {result["initial_weights_checksum"]}
    drawn = {}
    for sweep in sweeps:
        with open(published / f"{sweep}.csv") as lines:
            drawn |= {row["cells"]: float(row["mean"]) for row in csv.DictReader(lines) if row["cells"]}
    assert drawn == pytest.approx(accuracies)
