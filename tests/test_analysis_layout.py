"""Figures without a description: which curves and panels the options, or the fields that vary, make."""

from pathlib import Path
from typing import Any

import pandas as pd
from analysis_stores import config, grid, made_store

from hiddenweights.analysis import aggregate, specs
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.layout import layout
from hiddenweights.config import CellConfig
from hiddenweights.identity import cell_id


def drawn_from(folder: Path, cells: list[CellConfig], name: str = "mine", **axes: Any) -> pd.DataFrame:
    table = fetch(str(made_store(folder, name, cells)), None)
    return aggregate.curves(specs.points(table, layout(name, table, **axes)))


def dense(**fields: Any) -> list[CellConfig]:
    """Trained networks with two learning rates and two seeds each."""
    rates = [{"optim__lr": lr, "seed": seed} for lr in (0.01, 0.1) for seed in (0, 1)]
    return [config(model__method="dense", **rate, **fields) for rate in rates]


def test_a_named_field_tells_dense_networks_apart(tmp_path: Path) -> None:
    decays = (1e-4, 1e-3)
    cells = [cell for decay in decays for cell in dense(optim__weight_decay=decay)]
    masks = [config(optim__lr=lr, model__k=0.5) for lr in (0.01, 0.1)]
    for i, found in enumerate((cells, cells + masks)):
        drawn = drawn_from(tmp_path / str(i), found, x="optim.lr", curve="optim.weight_decay")
        assert drawn[drawn["kind"] == specs.BASELINE]["n"].tolist() == [2] * 4
        for curve, points in drawn[drawn["kind"] == specs.BASELINE].groupby("curve"):
            assert str(curve).startswith("dense, SGD, ")
            assert points["x"].tolist() == [0.01, 0.1]


def test_a_sweep_of_dense_networks_has_a_curve_per_value_that_tells_them_apart(tmp_path: Path) -> None:
    sgd = [cell for decay in (1e-4, 1e-3) for cell in dense(optim__weight_decay=decay)]
    adam = dense(optim__optimizer="adam")
    drawn = drawn_from(tmp_path, sgd + adam, x="optim.lr")
    assert drawn["n"].tolist() == [2] * 6
    assert drawn["curve"].nunique() == 3


def test_what_follows_from_the_optimiser_is_not_in_the_name(tmp_path: Path) -> None:
    """As its weight decay and learning rate by the recipe."""
    optimisers = ("sgd", "adam")
    cells = [
        config(model__method="dense", model__width=width, optim__optimizer=optimiser)
        for width in (0.5, 1.0) for optimiser in optimisers
    ]  # fmt: skip
    drawn = drawn_from(tmp_path, cells)
    assert set(drawn["curve"]) == {"dense, SGD", "dense, Adam"}
    assert sorted(drawn["x"]) == [0.5, 0.5, 1.0, 1.0]


def test_dense_networks_are_in_the_panel_of_their_field(tmp_path: Path) -> None:
    cells = [cell for name in ("digits", "mnist") for cell in grid(["conv2"], [0.3, 0.5], data__name=name)]
    drawn = drawn_from(tmp_path, cells, panel="data.name")
    assert set(drawn["panel"]) == {"digits", "mnist"}
    for _, panel in drawn.groupby("panel"):
        assert panel["kind"].value_counts().to_dict() == {specs.SUBNETWORK: 4, specs.BASELINE: 2}
    assert set(drawn.loc[drawn["kind"] == specs.BASELINE, "curve"]) == {"dense, SGD", "dense, Adam"}


def test_the_seeds_of_trained_subnetworks_share_a_curve(tmp_path: Path) -> None:
    """Each names the parent of its own seed, which makes no curve."""
    found = grid(archs=["conv4"], ks=[0.5], distributions=["signed_constant"])
    trained = [
        config(model__init_from=cell_id(cell), model__arch="conv4", model__k=0.5, seed=cell.seed)
        for cell in found if cell.model.method != "dense"
    ]  # fmt: skip
    for axes in ({"x": "epoch"}, {"x": "model.k", "y": "train_loss"}):
        drawn = drawn_from(tmp_path, [*found, *trained], "lottery", **axes)
        assert drawn["curve"].nunique() == 4  # found, trained, and dense by two optimisers
        assert set(drawn["n"]) == {3}
