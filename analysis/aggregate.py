"""Table -> mean, standard deviation, n and an interval. Imports nothing that draws."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hiddenweights.errors import UserError

RESAMPLES = 10_000
LEVEL = 0.95
FloatArray = NDArray[np.float64]

# Two cells of one curve may differ in x, seed and where they ran, but not in these unless asked.
SAME = ("data.name", "data.protocol", "data.subset", "train.epochs", "model.selection")


def bootstrap(values: FloatArray, *, seed: int = 0, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (shape (n,)); NaN for n < 2.

    With the usual three to five seeds it spans nearly the values themselves: read it as their
    spread, not as proof. Equal input and seed give equal numbers, whatever else is computed.
    """
    values = np.sort(values)  # the order of the seeds must not matter
    if len(values) < 2:
        return (float("nan"), float("nan"))
    rows = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def describe(values: Iterable[float], *, seed: int = 0) -> dict[str, float]:
    """mean, sd (of the sample, NaN for one value), n, and the bootstrap interval low to high."""
    array = np.asarray([*values], float)
    low, high = bootstrap(array, seed=seed)
    sd = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    mean = float(array.mean()) if len(array) else float("nan")
    return {"mean": mean, "sd": sd, "n": len(array), "low": low, "high": high}


def paired(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, *, on: tuple[str, ...] = ("seed",), seed: int = 0
) -> dict[str, float]:
    """`describe` of a's metric minus b's, over the values of `on` that both have (one row each)."""
    joined = a.merge(b, on=list(on), suffixes=("_a", "_b"), validate="one_to_one")
    return describe(joined[f"{metric}_a"] - joined[f"{metric}_b"], seed=seed)


def curves(points: pd.DataFrame, *, seed: int = 0, mixed: bool = False) -> pd.DataFrame:
    """One row a point of a curve: the statistics of `y` over its cells.

    `points` has one row a cell: `panel`, `curve`, `kind`, `tag`, `x`, `y`, `cell`, `seed` and the columns
    of `SAME`. The result has `panel`, `curve`, `kind`, `x`, `mean`, `sd`, `n`, `low`, `high`, `tag`,
    `full` (whether n is the largest of the figure) and `cells`, in order of panel, curve and x.

    Raises `UserError` where cells of one curve differ in `SAME` (unless `mixed`), or where one seed
    occurs twice in a point.
    """
    by = ["panel", "curve", "kind"]
    if not mixed:
        _refuse_mixtures(points, by)
    rows: list[dict[str, Any]] = []
    for key, group in points.groupby([*by, "x"], sort=False, dropna=False):
        twice = group["seed"][group["seed"].duplicated()]
        if len(twice) and not mixed:
            raise UserError(
                f"{_words(key[0], key[1])}: seed {twice.iloc[0]} occurs more than once at x = {key[3]:g} "
                f"(cells {', '.join(sorted(group['cell']))}); choose some with --where FIELD=VALUE"
            )
        statistics = describe(group["y"], seed=seed)
        cells = " ".join(sorted(group["cell"]))
        rows.append(
            {
                **dict(zip([*by, "x"], key, strict=True)),
                **statistics,
                "tag": group["tag"].iloc[0],
                "cells": cells,
            }
        )
    drawn = pd.DataFrame(rows)
    return drawn.assign(full=drawn["n"] == drawn["n"].max())


def _refuse_mixtures(points: pd.DataFrame, by: list[str]) -> None:
    for key, group in points.groupby(by, sort=False, dropna=False):
        for column in SAME:
            values = group[column].map(lambda value: "none" if pd.isna(value) else str(value)).unique()
            if len(values) > 1:
                raise UserError(
                    f"{_words(key[0], key[1])}: its cells differ in {column} ({', '.join(sorted(values))}); "
                    f"choose one with --where {column}=VALUE, or draw them together with --mixed"
                )


def _words(panel: object, curve: object) -> str:
    return f"curve {curve!r}" + (f" of {panel}" if panel else "")
