"""Published numbers: one CSV per figure. Each row states its source and how it was read.

The files lie beside the figures of their paper, as ``FIGURE.csv``. `x` and `y` have the units of the figure.
A row without x is a horizontal line. `relation` is ``<`` or ``>`` if only a bound is published; such rows
are not drawn.
"""

from importlib import resources

import pandas as pd

from hiddenweights.analysis.experiments import PACKAGES
from hiddenweights.analysis.specs import PREFIX, PUBLISHED


def published(figure: str, points: pd.DataFrame) -> pd.DataFrame:
    """The published rows for a figure's panels, as curves of kind ``published`` (see `aggregate.curves`).

    Empty if nothing is published, or if our cells were trained on other data.
    """
    files = [resources.files(package) / f"{figure}.csv" for package in PACKAGES]
    tables = []
    for file in (file for file in files if file.is_file()):
        with file.open() as lines:
            tables.append(pd.read_csv(lines, keep_default_na=False, na_values={"x": [""]}))
    if not tables:
        return pd.DataFrame()
    rows = pd.concat(tables, ignore_index=True)
    data = set(points["data.name"].str.removeprefix("folder:"))
    rows = rows[rows["data"].isin(data) & rows["panel"].isin(points["panel"]) & (rows["relation"] == "=")]
    return pd.DataFrame(
        {
            "panel": rows["panel"],
            "curve": PREFIX + rows["curve"],
            "kind": PUBLISHED,
            "x": rows["x"].astype(float),
            "mean": rows["y"].astype(float),
            "full": True,
            "cells": "",
            "source": rows["source"],
            "how": rows["how"],
        }
    )
