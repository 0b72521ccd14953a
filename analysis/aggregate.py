"""From the table to mean, standard deviation, n and an interval. No drawing."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from hiddenweights.claims.contrasts import BY_SEED, IDENTITY
from hiddenweights.errors import UserError

LEVEL = 0.95
FEW = 3  # with fewer values there is no interval: with two it would be 9 standard deviations to each side
MOST_BANDS, FEW_PLACES = 3, 8  # curves whose bands can be told apart; places where bars have room
FloatArray = NDArray[np.float64]

# Cells of one curve may not differ in these fields.
SAME = ("data.name", "data.protocol", "data.subset", "train.epochs", "model.selection")
# Cells of one point may differ in the seed and in where they ran.
ALIKE = tuple(name for name in IDENTITY if name not in BY_SEED)


def interval(values: FloatArray, *, level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of the mean of `values` (shape (n,)); NaN for n < 2.

    It is exact for normal values at every n. With three values it reaches 2.5 standard deviations to each
    side.
    """
    n = len(values)
    if n < 2:
        return (float("nan"), float("nan"))
    mean = float(values.mean())
    half = t_quantile((1 + level) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


@functools.cache  # scipy takes 0.1 ms per call, and a table has few different n
def t_quantile(level: float, freedom: int) -> float:
    """The quantile at `level`, in (0, 1), of Student's t distribution with `freedom` degrees of freedom."""
    return float(stdtrit(freedom, level))


def describe(values: Iterable[float], *, level: float = LEVEL) -> dict[str, float]:
    """mean, sd (of the sample, NaN for one value), n, and the t interval low to high (NaN for n < `FEW`)."""
    array = np.asarray([*values], float)
    low, high = interval(array, level=level) if len(array) >= FEW else (float("nan"), float("nan"))
    sd = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    mean = float(array.mean()) if len(array) else float("nan")
    return {"mean": mean, "sd": sd, "n": len(array), "low": low, "high": high}


def curves(points: pd.DataFrame, *, mixed: bool = False) -> pd.DataFrame:
    """One row per point of a curve: the statistics of `y` over its cells.

    `points` has one row per cell: `panel`, `curve`, `kind`, `tag`, `x`, `y`, `cell`, `seed` and the columns
    of `ALIKE`. The result has `panel`, `curve`, `kind`, `x`, `mean`, `sd`, `n`, `low`, `high`, `tag`,
    `full` (whether n is the largest of the figure), `values` (with fewer than `FEW`: each of them, as text)
    and `cells`, in order of panel, curve and x.

    Unless `mixed`, raises `UserError` if cells of one curve differ in `SAME`, if cells of one point differ in
    `ALIKE`, or if a seed occurs twice in a point.
    """
    by = ["panel", "curve", "kind"]
    if not mixed:
        _refuse_mixtures(points, by, SAME)
        _refuse_mixtures(points, [*by, "x"], ALIKE)
    rows: list[dict[str, Any]] = []
    for key, group in points.groupby([*by, "x"], sort=False, dropna=False):
        twice = group["seed"][group["seed"].duplicated()]
        if len(twice) and not mixed:
            raise UserError(
                f"{_words(key[0], key[1])}: seed {twice.iloc[0]} occurs more than once at x = {key[3]:g} "
                f"(cells {', '.join(sorted(group['cell']))}); choose some with --where FIELD=VALUE"
            )
        statistics = describe(group["y"])
        cells = " ".join(sorted(group["cell"]))
        rows.append(
            {
                **dict(zip([*by, "x"], key, strict=True)),
                **statistics,
                "tag": group["tag"].iloc[0],
                "values": " ".join(f"{y:.4f}" for y in group["y"]) if len(group) < FEW else "",
                "cells": cells,
            }
        )
    drawn = pd.DataFrame(rows)
    return drawn.assign(full=drawn["n"] == drawn["n"].max())


def in_band(drawn: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the interval of each point of `curves` joins one beside it on its curve, as part of a band.

    An interval of a curve without x always does: it goes across the panel. An interval between two points
    without intervals is to be drawn by itself. So are all of a panel with more than `MOST_BANDS` curves over
    few places, because their bands would hide each other.
    """
    ordered = drawn.sort_values("x")
    has = ordered["low"].notna()
    curve = has.groupby([ordered[name] for name in ("panel", "curve", "kind")], sort=False)
    beside = curve.shift(1, fill_value=False) | curve.shift(-1, fill_value=False) | ordered["x"].isna()
    over_x = drawn[drawn["low"].notna() & drawn["x"].notna()].groupby("panel")
    crowded = (over_x["curve"].nunique() > MOST_BANDS) & (over_x["x"].nunique() <= FEW_PLACES)
    apart = ordered["panel"].isin(crowded.index[crowded]) & ordered["x"].notna()
    return (has & beside & ~apart).reindex(drawn.index)


def shifts(drawn: pd.DataFrame) -> dict[str, float]:
    """How many steps to the side to draw each curve of a panel, so that bars are beside each other.

    `drawn` has the column `band` (see `in_band`). The steps are whole ones apart, and 0 on average.
    """
    bars = drawn[drawn["low"].notna() & ~drawn["band"]]
    curves = [*map(str, bars["curve"].unique())]
    return {curve: i - (len(curves) - 1) / 2 for i, curve in enumerate(curves)}


def cut(drawn: pd.DataFrame, scale: float) -> pd.DataFrame:
    """`drawn` with intervals that end at 0 and 100 if they are percentages (`scale` is 100), to be drawn.

    A t interval may go beyond, because it assumes normal values.
    """
    if scale != 100:
        return drawn
    return drawn.assign(low=drawn["low"].clip(lower=0), high=drawn["high"].clip(upper=100))


def _refuse_mixtures(points: pd.DataFrame, by: list[str], fields: Sequence[str]) -> None:
    """Raise `UserError` if cells of one group differ in one of `fields`."""
    group = points.groupby(by, sort=False, dropna=False).ngroup()
    for name in fields:
        pairs = pd.DataFrame({"group": group, "value": points[name]}).drop_duplicates()
        apart = pairs["group"][pairs["group"].duplicated()]
        if apart.empty:
            continue
        rows = points[group == apart.iloc[0]]
        words = rows[name].map(lambda value: "none" if pd.isna(value) else str(value))
        values = ", ".join(sorted(words.unique()))
        at = f" at x = {rows['x'].iloc[0]:g}" if "x" in by and rows["x"].notna().all() else ""
        curve = _words(rows["panel"].iloc[0], rows["curve"].iloc[0])
        raise UserError(
            f"{curve}: its cells{at} differ in {name} ({values}); choose one with --where {name}=VALUE, "
            f"tell them apart with --curve {name}, or draw them together with --mixed"
        )


def _words(panel: object, curve: object) -> str:
    return f"curve {curve!r}" + (f" of {panel}" if panel else "")
