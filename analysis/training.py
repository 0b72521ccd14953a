"""Training curves and layers of a figure's cells, averaged over seeds."""

import pandas as pd

from hiddenweights.analysis.table import Table

# The columns of an epoch that are shown: label, and factor to the unit of the label.
METRICS = {
    "test_accuracy": ("test accuracy (%)", 100.0),
    "train_loss": ("training loss", 1.0),
    "churn": ("mask bits changed in the epoch (%)", 100.0),
    "kept": ("weights kept (%)", 100.0),
}
LAYER = ("kept/", "churn/")  # and the name of a layer
MOST_EPOCHS = 60  # epochs per line; more make the page slow without making a line clearer


def unit(name: str) -> tuple[str, float]:
    """The label of a logged number on an axis, and the factor to the unit of the label."""
    if name in METRICS:
        return METRICS[name]
    fraction = name.endswith("accuracy") or name.startswith(LAYER)
    return (f"{name.replace('_', ' ')} (%)", 100.0) if fraction else (name.replace("_", " "), 1.0)


def epoch_means(points: pd.DataFrame, table: Table) -> pd.DataFrame:
    """One row per panel, curve, x and epoch: means over seeds of `METRICS` in their units, and `n`.

    `points` has one row per cell (see `specs.points`). Columns: `panel`, `curve`, `x`, `epoch`, `n`, and
    those of `METRICS` that were recorded. Of more than `MOST_EPOCHS` epochs, evenly spaced ones and the last
    one are kept.
    """
    known = [name for name in METRICS if name in table.epochs]
    epochs = points[["cell", "panel", "curve", "x"]].merge(table.epochs[["cell", "epoch", *known]], on="cell")
    if epochs.empty:
        return epochs
    step = -(-int(epochs["epoch"].max()) // MOST_EPOCHS)
    last = epochs.groupby("cell")["epoch"].transform("max")
    epochs = epochs[(epochs["epoch"] % step == 0) | (epochs["epoch"] == 1) | (epochs["epoch"] == last)]
    groups = epochs.groupby(["panel", "curve", "x", "epoch"], sort=False, dropna=False)
    means = groups[known].mean().assign(n=groups.size()).reset_index()
    for name in known:
        means[name] *= METRICS[name][1]
    return means.dropna(axis="columns", how="all")


def layer_means(points: pd.DataFrame, table: Table) -> pd.DataFrame:
    """One row per panel, curve, x and layer after the last epoch: means of `kept` and `churn` in per cent.

    Layers are in the order of the network. Empty if no record has values per layer.
    """
    columns = [name for name in map(str, table.epochs) if name.startswith(LAYER)]
    if not columns:
        return pd.DataFrame()
    last = table.epochs.sort_values("epoch", kind="stable").drop_duplicates("cell", keep="last")
    rows = points[["cell", "panel", "curve", "x"]].merge(last[["cell", *columns]], on="cell")
    rows = rows.melt(["cell", "panel", "curve", "x"], columns, var_name="name").dropna(subset=["value"])
    if rows.empty:
        return pd.DataFrame()
    rows[["metric", "layer"]] = rows["name"].str.split("/", n=1, expand=True)
    keys = ["panel", "curve", "x", "layer"]
    means = (
        rows.groupby([*keys, "metric"], sort=False, dropna=False)["value"].mean().mul(100).unstack("metric")
    )
    return means.reset_index()
