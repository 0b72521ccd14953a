"""The layout of a figure without a description, from the fields in which the cells of its sweep differ."""

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

from hiddenweights.analysis.experiments import FIGURES
from hiddenweights.analysis.specs import EPOCH, Spec, finished_cells, label, network, network_and_data
from hiddenweights.analysis.table import METRIC, Table
from hiddenweights.analysis.training import unit
from hiddenweights.claims.contrasts import BY_SEED
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError, choices_error, nearest
from hiddenweights.flat import flatten

# Fields about where and how fast a cell was trained, and those of its seed, are not axes of a figure.
_NO_AXIS = ("data.root", "train.device", "train.threads", *BY_SEED)
FIELDS = tuple(name for name in flatten(CellConfig()) if name not in _NO_AXIS)
# The x axis: k, or the width, or the first number that varies.
_FIRST = ("model.width",)


def layout(
    name: str,
    table: Table,
    x: str | None = None,
    curve: str | None = None,
    panel: str | None = None,
    y: str = METRIC,
) -> Spec:
    """A figure of the sweep `name` over `x`, one curve per value of `curve`, one panel per value of `panel`.

    `y` is a logged number, for example `churn`.

    Axes that are not given come from the fields that vary: x is `model.k` (`kept` if some cells have no k),
    `model.width` or the first number, logarithmic if it spans a factor of ten; panels are networks (and data
    sets), and curves are named by the remaining fields, those of dense networks also by the optimiser. Dense
    networks are horizontal lines, unless they differ in x. With x `epoch` these are training curves: y after
    each epoch.

    Raises `UserError` for an axis that is not a field, an x that is not a number, a sweep that the table does
    not have, and if no number varies.
    """
    for option, field in (("--x", x), ("--curve", curve), ("--panel", panel)):
        choices = (*FIELDS, EPOCH) if option == "--x" else FIELDS
        if field is not None and field not in choices:
            raise choices_error(option, field, choices)
    _check_name(name, table)
    cells = finished_cells(table, name)
    is_dense = cells["model.method"] == "dense"
    if is_dense.all():  # a sweep of dense networks: they are the curves
        is_dense = ~is_dense
    masked = cells[~is_dense]
    varying = [field for field in FIELDS if masked[field].nunique(dropna=False) > 1]
    x = x or _x(name, masked, varying)
    if x in FIELDS and not _is_number(cells[x].dropna()):
        raise UserError(f"--x: {x} is not a number; it can be the field of --curve or --panel")
    panels = _panels(panel, cells)
    apart = ("model.arch", "data.name") if panel is None else (panel,)
    left = [field for field in varying if field not in (x, *apart)]
    kept = x in ("model.k", "kept")
    y_label, y_scale = unit(y)
    return Spec(
        name=name,
        title=name.replace("_", " ").replace("-", ": "),
        x=x,
        x_label="weights kept (%)" if kept else x,
        x_words="{:g}% of the weights kept" if kept else _words(x),
        scale=100 if kept else 1,
        log=not kept and x != EPOCH and _is_wide(cells[x]),
        reverse=kept,
        level_baselines=x != EPOCH and bool(is_dense.any()) and cells.loc[is_dense, x].nunique() <= 1,
        curve=lambda rows: _curves(rows, [curve] if curve else left, panels(rows)),
        panel=panels,
        y=y,
        y_label=y_label,
        y_scale=y_scale,
    )


def _check_name(name: str, table: Table) -> None:
    """Raise `UserError` if no run of the table belongs to the sweep `name`."""
    known = {sweep for rows in (table.cells, table.left_out) for sweep in " ".join(rows["sweeps"]).split()}
    if name not in known:
        near = " or ".join(map(repr, nearest(name, [*FIGURES, *sorted(known)])))
        hint = f" (did you mean {near}?)" if near else ""
        raise UserError(
            f"figure: the source has no sweep {name!r}{hint}, but: {', '.join(sorted(known)) or 'none'}; "
            "`hiddenweights sweeps list` lists those that can be launched"
        )


def file_name(
    name: str, x: str | None = None, curve: str | None = None, panel: str | None = None, y: str | None = None
) -> str:
    """The name of the files of a figure with these axes: another one for each choice of axes.

    `y` counts if it is not the accuracy on test images, or if no other axis is given.
    """
    words = [name]
    if y and (y != METRIC or not (x or curve or panel)):
        words.append(y.replace("/", "_"))
    given = {"by": x, "curve": curve, "panel": panel}
    words += [f"{option}_{field.rpartition('.')[2]}" for option, field in given.items() if field]
    return "_".join(words)


def _words(x: str) -> str:
    """A place on the x axis in words, with {:g} for its number."""
    return "after epoch {:g}" if x == EPOCH else f"{x} = {{:g}}"


def _x(name: str, cells: pd.DataFrame, varying: list[str]) -> str:
    if cells["model.k"].nunique() > 1:
        return "model.k" if cells["model.k"].notna().all() else "kept"  # `sampled` has no k
    for field in (*_FIRST, *varying):
        if field in varying and _is_number(cells[field]):
            return field
    raise UserError(
        f"--x: no numeric field varies between the cells of {name}; "
        "name the field of the x axis, or epoch for training curves"
    )


def _is_number(values: "pd.Series[Any]") -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and bool(
        values.notna().all()
    )


def _is_wide(values: "pd.Series[Any]") -> bool:
    """Whether the values need a logarithmic axis: positive numbers that span a factor of about ten."""
    return _is_number(values) and values.min() > 0 and bool(values.max() / values.min() > 9.9)


def _panels(panel: str | None, cells: pd.DataFrame) -> Callable[[pd.DataFrame], "pd.Series[str]"]:
    """The panel of each row: by the field, else by the network, and by the data set if there are several."""
    if panel is None:
        return network_and_data if cells["data.name"].nunique() > 1 else network
    return lambda rows: _values(rows, [panel])


def _curves(rows: pd.DataFrame, fields: list[str], panels: "pd.Series[str]") -> "pd.Series[str]":
    """The curve of each row, named by the fields.

    Dense networks are named by their optimiser, and by the fields in which those of one panel then differ.
    """
    names = label(rows)
    if not fields:
        return names
    is_dense = rows["model.method"] == "dense"
    dense = rows[is_dense].groupby([panels[is_dense], names[is_dense]])
    apart = [field for field in fields if (dense[field].nunique(dropna=False) > 1).any()]
    baselines = names + ", " + _values(rows, apart) if apart else names
    return _values(rows, fields).where(~is_dense, baselines)


def _values(rows: pd.DataFrame, fields: list[str]) -> "pd.Series[str]":
    """The values of the fields in each row, in words."""
    words = (rows[field].map(lambda value, field=field: _word(field, value)) for field in fields)
    return functools.reduce(lambda left, right: left + ", " + right, words)


def _word(field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{field.rpartition('.')[2]} = {'unset' if pd.isna(value) else format(value, 'g')}"
