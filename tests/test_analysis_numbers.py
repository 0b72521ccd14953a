"""Table -> numbers: intervals, pairing, and what is refused in one curve."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_stores import config, grid, made_store, result, write_store
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hiddenweights.analysis import aggregate, experiments, specs, summary, training
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.layout import layout
from hiddenweights.analysis.published import published
from hiddenweights.analysis.table import Table
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.identity import cell_id


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.randoms())
def test_the_interval_is_students(values: list[float], rng: object) -> None:
    low, high = aggregate.interval(np.array(values))
    assert (low + high) / 2 == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-3:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (low, high) == pytest.approx(expected)
    rng.shuffle(values)  # type: ignore[attr-defined]
    assert (low, high) == pytest.approx(aggregate.interval(np.array(values)), abs=1e-9)


def test_the_interval_of_three_seeds_has_its_level() -> None:
    rng = np.random.default_rng(0)
    drawn = [aggregate.interval(rng.normal(size=3)) for _ in range(4000)]
    hits = sum(low <= 0 <= high for low, high in drawn)
    assert 0.935 < hits / len(drawn) < 0.965  # 0.95 +- four standard errors


def test_one_value_has_no_interval() -> None:
    found = aggregate.describe([3.0])
    assert found["mean"] == 3.0
    assert found["n"] == 1
    assert np.isnan([found["sd"], found["low"], found["high"]]).all()


def points_of(tmp_path: Path, cells: list[CellConfig], sweep: str = "depth") -> pd.DataFrame:
    table = fetch(str(made_store(tmp_path, sweep, cells)))
    return specs.points(table, experiments.find_spec(sweep))


def test_every_drawn_point_names_its_cells(tmp_path: Path) -> None:
    cells = grid(archs=("conv2",), ks=(0.3, 0.5))
    drawn = aggregate.curves(points_of(tmp_path, cells))
    assert len(drawn) == 2 * 2 + 2
    assert sorted(" ".join(drawn["cells"]).split()) == sorted(cell_id(cell) for cell in cells)
    assert set(drawn["n"]) == {3}
    assert drawn["full"].all()
    row = drawn[(drawn["curve"] == "Kaiming normal") & (drawn["x"] == 30)].iloc[0]
    expected = [result(cell)["summary"]["test_accuracy"] for cell in cells if cell_id(cell) in row["cells"]]
    assert row["mean"] == pytest.approx(100 * np.mean(expected))
    assert row["sd"] == pytest.approx(100 * np.std(expected, ddof=1))


def test_a_point_that_lacks_seeds_is_kept_and_marked(tmp_path: Path) -> None:
    cells = grid(archs=("conv2",), ks=(0.3, 0.5))[1:]
    drawn = aggregate.curves(points_of(tmp_path, cells))
    assert sorted(drawn["n"]) == [2, 3, 3, 3, 3, 3]
    assert drawn.loc[~drawn["full"], "n"].tolist() == [2]


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("train.epochs", {"train__epochs": 5}),
        ("data.protocol", {"data__protocol": "paper"}),
        ("optim.lr", {"optim__lr": 0.5}),
        ("model.width", {"model__width": 0.5}),
        ("train.precision", {"train__precision": "float32"}),
    ],
)
def test_different_conditions_are_refused_in_one_curve_unless_asked(
    tmp_path: Path, field: str, changed: dict[str, object]
) -> None:
    cells = [config(model__k=0.5), config(model__k=0.5, seed=1, **changed)]
    points = points_of(tmp_path, cells)
    with pytest.raises(UserError, match=field):
        aggregate.curves(points)
    assert aggregate.curves(points, mixed=True)["n"].tolist() == [2]


def test_one_seed_twice_in_a_point_is_refused(tmp_path: Path) -> None:
    points = points_of(tmp_path, [config(model__k=0.5), config(model__k=0.5, seeds__data=1)])
    with pytest.raises(UserError, match="seed 0"):
        aggregate.curves(points)


def test_a_sampled_supermask_stands_where_it_keeps_weights(tmp_path: Path) -> None:
    found = [result(config(model__method="sampled", seed=seed)) for seed in range(3)]
    for entry, kept in zip(found, (0.49, 0.5, 0.54), strict=True):
        entry["summary"]["kept"] = kept
    store = write_store(tmp_path, found, {"sampled": [entry["cell"] for entry in found]})
    drawn = aggregate.curves(specs.points(fetch(str(store)), experiments.find_spec("sampled")))
    assert drawn["x"].tolist() == [pytest.approx(51)]
    assert drawn["n"].tolist() == [3]


def test_changed_weights_are_found(tmp_path: Path) -> None:
    cells = [config(seed=seed) for seed in range(4)] + [config(model__method="dense")]
    found = [result(cell) for cell in cells]
    found[1]["initial_weights_checksum"] = "other"
    found[2]["history"][1]["weights_checksum"] = "for one epoch"
    store = write_store(tmp_path, found, {"depth": [entry["cell"] for entry in found]})
    table = fetch(str(store))
    points = specs.points(table, experiments.find_spec("depth"))
    assert "2 of 4" in summary.unchanged(points, table)


PUBLISHED = [
    path
    for package in experiments.PACKAGES
    for path in resources.files(package).iterdir()
    if path.name.endswith(".csv")
]


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.name for path in PUBLISHED])
def test_every_published_number_has_its_source(path: Traversable) -> None:
    assert path.name.removesuffix(".csv") in experiments.FIGURES
    with path.open() as lines:
        rows = pd.read_csv(lines)
    assert rows[["data", "curve", "relation", "y", "source", "how"]].notna().all().all()
    assert rows["y"].between(5, 100).all()  # in per cent
    assert set(rows["relation"]) <= {"=", "<", ">"}


def test_published_numbers_stand_beside_ours_on_the_same_data_only(tmp_path: Path) -> None:
    cells = grid(archs=("conv8",), ks=(0.5,), data__name="cifar10")
    points = points_of(tmp_path, cells)
    rows = published("depth", points)
    signed = rows[rows["curve"] == "published: signed constant"].set_index("x")["mean"]
    assert signed.to_dict() == {90: 71.3, 70: 87.5, 50: 89.1, 30: 87.9, 10: 67.7}
    assert set(rows["panel"]) == {"Conv8"}
    assert published("depth", points.assign(**{"data.name": "digits"})).empty
    assert published("quickstart", points).empty


def test_a_curve_of_two_versions_of_the_data_says_so(tmp_path: Path) -> None:
    cells = [config(seed=seed, model__k=k) for k in (0.3, 0.5) for seed in range(3)]
    results = [result(cell) for cell in cells]
    for digest, found in zip(["a" * 32] * 4 + ["b" * 32], results, strict=False):  # one cell does not say
        found["data_digest"] = digest
    notes = []
    for name, last in (("mixed", "b" * 32), ("same", "a" * 32)):
        results[4]["data_digest"] = last
        store = write_store(tmp_path / name, results, {"depth": [cell_id(cell) for cell in cells]})
        table = fetch(str(store))
        spec = experiments.find_spec("depth")
        points = specs.points(table, spec)
        drawn, words = aggregate.curves(points), "4 cells read aaaaaaaa; 1 cells read bbbbbbbb"
        lines = summary.lines(points, drawn, table, spec)
        notes.append((sum(words in line for line in lines), words in summary.note(points, drawn, spec)))
    assert notes == [(1, True), (0, False)]


def test_a_curve_of_several_kinds_of_processor_says_so(tmp_path: Path) -> None:
    cells = [config(seed=seed, model__k=k) for k in (0.3, 0.5) for seed in range(3)]
    results = [result(cell) for cell in cells]
    kind = {"model": "EPYC", "instructions": "AVX2", "precision": "float32", "threads": 1}
    for found in results[:5]:
        found["processor"] = kind
    store = write_store(tmp_path / "same", results, {"depth": [cell_id(cell) for cell in cells]})
    table = fetch(str(store))
    assert table.cells["processor.instructions"].value_counts().to_dict() == {"AVX2": 5}
    assert table.cells["processor.threads"].count() == 5
    points = specs.points(table, experiments.find_spec("depth"))
    assert summary.mixed_processors(points) == []  # one cell does not say

    results[4]["processor"] = kind | {"threads": 2}
    store = write_store(tmp_path / "mixed", results, {"depth": [cell_id(cell) for cell in cells]})
    points = specs.points(fetch(str(store)), experiments.find_spec("depth"))
    (line,) = summary.mixed_processors(points)
    assert "4 on EPYC, AVX2, float32, 1 thread;" in line
    assert "1 on EPYC, AVX2, float32, 2 threads" in line


def test_a_figure_of_dense_networks_has_no_layers() -> None:
    epochs = pd.DataFrame({"cell": ["a", "b"], "epoch": [1, 1], "kept/fc": [0.5, float("nan")]})
    points = pd.DataFrame({"panel": "", "curve": "dense", "x": float("nan"), "cell": ["a", "b"]})
    table = Table(pd.DataFrame(), epochs, pd.DataFrame())
    assert training.layer_means(points[points["cell"] == "b"], table).empty
    assert training.layer_means(points, table)["kept"].tolist() == [50]


def test_training_curves_of_many_epochs_end_with_the_last_one(tmp_path: Path) -> None:
    cells = [config(model__k=0.5, train__epochs=epochs) for epochs in (61, 100)]
    table = fetch(str(made_store(tmp_path, "depth", cells)))
    points = specs.points(table, experiments.find_spec("depth"))
    for cell, rows in points.groupby("cell"):
        found = training.epoch_means(rows, table)["epoch"]
        assert (found.min(), found.max()) == (
            1,
            table.epochs.loc[table.epochs["cell"] == cell, "epoch"].max(),
        )
        assert len(found) <= training.MOST_EPOCHS + 2


def test_a_note_says_what_panels_and_published_numbers_do_not(tmp_path: Path) -> None:
    cells = [config(model__k=0.5, model__width=width, data__subset=500) for width in (0.25, 0.5)]
    table = fetch(str(write_store(tmp_path, map(result, cells), {"width": map(cell_id, cells)})))
    points = specs.points(table, experiments.find_spec("width"))
    for name, words in (
        ("width", "digits, 500 images, 3 epochs"),
        ("depth", "500 images, width 0.25, 0.5, 3"),
    ):
        note = summary.note(points, aggregate.curves(points), experiments.find_spec(name))
        assert words in note


def test_the_best_subnetwork_is_quoted_with_what_is_like_it(tmp_path: Path) -> None:
    """Trained networks at the same place on the axis; training curves after their last epoch."""
    sides = ({"model__k": 0.5}, {"model__method": "dense"})
    cells = [config(model__width=width, **side) for width in (0.5, 1.0) for side in sides]
    accuracies = {
        (0.5, "edge_popup"): 0.8,
        (1.0, "edge_popup"): 0.7,
        (0.5, "dense"): 0.85,
        (1.0, "dense"): 0.9,
    }
    found = [result(cell, accuracies[cell.model.width, cell.model.method_or_default]) for cell in cells]
    table = fetch(str(write_store(tmp_path, found, {"width": map(cell_id, cells)})))
    for x, where in ((None, []), ("epoch", ["model.width=0.5"])):
        some = summary.where(table, where)
        spec = layout("width", some, x)
        points = specs.points(some, spec)
        (best,) = summary.best(points, aggregate.curves(points), spec)
        assert best.accuracy == pytest.approx(80)
        assert best.trained == {"dense, SGD": pytest.approx(85)}
