"""The layout of a figure: cells, axis, panels and curves. No statistics, no drawing."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from hiddenweights.analysis.aggregate import ALIKE
from hiddenweights.analysis.table import METRIC, Table, processors
from hiddenweights.claims.contrasts import network as network_name
from hiddenweights.config import NETWORKS
from hiddenweights.errors import UserError, choices_error

SUBNETWORK, TRAINED, BASELINE, PUBLISHED = "subnetwork", "trained subnetwork", "baseline", "published"
ORDER = (SUBNETWORK, TRAINED, BASELINE, PUBLISHED)  # of the curves in a legend
EPOCH = "epoch"  # as x: training curves, with a point per cell and epoch
PREFIX = "published: "  # of the name of a published curve
EDGE_POPUP = "edge-popup, "  # before the distribution, if other methods are drawn beside it
KINDS = {"dense": BASELINE, "finetune": TRAINED}  # by method; others have random weights

_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_METHODS = {"random": "random mask", "iterand": "IteRand"}

# Curves with a fixed place in every figure, in this order.
CURVES = (
    "signed constant",
    "Kaiming normal",
    "unsigned constant",
    "Kaiming uniform",
    "Xavier normal",
    "signed Xavier constant",
    "default",
    "dense, SGD",
    "dense, Adam",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A figure: the sweep with its name, arranged in panels and curves."""

    name: str
    title: str
    x: str
    """Column of the x axis."""
    x_label: str
    x_words: str = "{:g}% of the weights kept"
    """Text for one place on the x axis."""
    scale: float = 1.0
    """Factor from the column to the axis."""
    log: bool = False
    """Whether the x axis is logarithmic."""
    reverse: bool = False
    """Whether the axis runs from large to small, as in the paper's Figure 3."""
    level_baselines: bool = True
    """Whether dense networks are horizontal lines. If not, they are a curve over x like the others."""
    curve: Callable[[pd.DataFrame], "pd.Series[str]"] | None = None
    """Label of the curve of a cell. If not given: `label`."""
    panel: Callable[[pd.DataFrame], "pd.Series[str]"] | None = None
    """Label of the panel. If not given: the network."""
    tag: Callable[[pd.DataFrame], "pd.Series[str]"] | None = None
    """Text next to each point. If not given: none."""
    y: str = METRIC
    """Logged number on the y axis: after each epoch if `x` is the epoch, else after the last one."""
    y_label: str = "test accuracy (%)"
    y_scale: float = 100.0
    """Factor from the logged number to the axis."""

    @property
    def file(self) -> str:
        """The name of its files in a report, which has files of its own."""
        return f"{self.name}_figure" if self.name in ("claims", "cells") else self.name


def label(cells: pd.DataFrame) -> "pd.Series[str]":
    """The curve of a cell: its distribution, and everything that differs from edge-popup's default.

    Dense networks are distinguished by their optimiser, fine-tuned subnetworks by their mask.
    """
    names = ("method", "distribution", "scaled", "selection", "init_mask")
    columns = [cells["optim.optimizer"], *(cells[f"model.{name}"] for name in names)]
    return pd.Series([_curve(*row) for row in zip(*columns, strict=True)], cells.index, dtype="str")


def _curve(
    optimizer: str, method: str, distribution: str, scaled: bool, selection: str, init_mask: str
) -> str:
    if method == "dense":
        return "dense, " + {"sgd": "SGD", "adam": "Adam"}[optimizer]
    words = [] if method == "edge_popup" else [_METHODS.get(method, method)]
    if method == "finetune":
        words = [f"{init_mask} and trained"]
    for name in ("kaiming", "xavier"):
        distribution = distribution.replace(name, name.title())
    words += [distribution.replace("_", " ")] + ["scaled"] * scaled + ["global"] * (selection == "global")
    return ", ".join(words)


def network(cells: pd.DataFrame) -> "pd.Series[str]":
    """The network's name for people."""
    return cells["model.arch"].map(network_name).astype("str")


def network_and_data(cells: pd.DataFrame) -> "pd.Series[str]":
    """A panel per network and data set."""
    return network(cells) + ", " + cells["data.name"].replace(_DATA)


def over_k(name: str, title: str, y_label: str = "test accuracy (%)") -> Spec:
    """A figure over k. As in the paper, the axis runs from 90 down to 10."""
    return Spec(
        name=name,
        title=title,
        x="model.k",
        x_label="weights kept (%)",
        y_label=y_label,
        scale=100,
        reverse=True,
    )


def over_kept(name: str, title: str) -> Spec:
    """A figure over the measured fraction, for methods without a k."""
    return replace(over_k(name, title), x="kept", x_label="weights kept (%), measured")


def one_panel(cells: pd.DataFrame) -> "pd.Series[str]":
    """All cells in one panel without a title."""
    return pd.Series("", cells.index, dtype="str")


def finished_cells(table: Table, name: str) -> pd.DataFrame:
    """The finished cells of the sweep `name`. Raises `UserError` that names the sweep if there are none."""
    cells = table.sweep(name)
    if cells.empty:
        known = ", ".join(sorted(table.finished_sweeps())) or "none"
        raise UserError(
            f"figure {name}: the source has no finished cell of sweep {name!r} (but of: {known}); "
            f"launch it: hiddenweights sweeps launch {name}"
        )
    return cells


def points(table: Table, spec: Spec) -> pd.DataFrame:
    """One row per finished cell of the sweep: panel, curve, kind, x, y, and the columns for `curves`.

    Over epochs it is one row per cell and epoch.

    Raises `UserError` that names the sweep to launch if the table has no such cell, and for a y that no cell
    has logged.
    """
    cells = finished_cells(table, spec.name)
    if spec.x == EPOCH or spec.y != METRIC:
        logged = _logged(table.epochs[table.epochs["cell"].isin(cells["cell"])], spec.y)
        if spec.x != EPOCH:
            logged = logged.sort_values(EPOCH, kind="stable").drop_duplicates("cell", keep="last")
        cells = cells.drop(columns=[EPOCH, spec.y], errors="ignore").merge(logged, on="cell")
    dense = cells["model.method"] == "dense"
    curve, panel = (spec.curve or label)(cells), (spec.panel or network)(cells)
    x = pd.to_numeric(cells[spec.x]) * spec.scale
    if spec.x in ("kept", "weights_kept"):
        # What `sampled` keeps is a result and varies with the seed: one place per curve.
        sampled = cells["model.method"] == "sampled"
        x = x.mask(sampled, x.groupby([panel, curve]).transform("mean"))
    if spec.level_baselines:
        x = x.mask(dense)
    if x[~dense].isna().any():
        names = cells.loc[x.isna() & ~dense, "name"].head(3)
        raise UserError(f"figure {spec.name}: no {spec.x} in {', '.join(names)}")
    digits = 4 if spec.x == "kept" else 6  # 9.99987% is 10% in whole weights
    order = [*dict.fromkeys([*CURVES, *sorted(curve.unique(), key=by_number)])]
    found = pd.DataFrame(
        {
            "panel": panel,
            "tag": spec.tag(cells) if spec.tag else "",
            "curve": pd.Categorical(curve, order, ordered=True),
            "kind": cells["model.method"].map(KINDS).fillna(SUBNETWORK),
            "x": x.map(lambda value: float(f"{value:.{digits}g}")),
            "y": spec.y_scale * cells[spec.y],
            "validation": 100 * cells["validation_accuracy"],
            "processor": processors(cells),
            "data_digest": cells["data_digest"],
            **{name: cells[name] for name in ("cell", "seed", *ALIKE)},
        }
    )
    depth = {name: place for place, name in enumerate(NETWORKS)}
    found["depth"] = found["model.arch"].map(depth).fillna(len(depth))
    found = found.sort_values(["depth", "model.arch", "panel", "curve", "x", "seed"], kind="stable")
    return found.drop(columns="depth").assign(curve=found["curve"].astype(str))


def by_number(curve: str) -> list[tuple[float, str]]:
    """The key that sorts names by the numbers in them: 5% before 10%."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", curve)  # text and numbers alternate
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def _logged(epochs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of `epochs` that have the logged number `name`: cell, epoch, and the number."""
    numbers = map(str, epochs.dropna(axis="columns", how="all").select_dtypes("number"))
    known = [column for column in numbers if column != EPOCH]
    if name not in known:
        raise choices_error("--y", name, [column for column in known if "/" not in column])
    return epochs[["cell", EPOCH, name]].dropna()
