"""The verdicts of a table on the claims. `hiddenweights.claims` has the definitions and the tests.

These are verdicts on the paper if the cells are like the paper's: its data, all images, its width, its recipe
and at least its number of epochs. For other cells a claim only *holds here*, *does not hold here* or is
*open here*. It is out of scope if the runs have none of its cells. The reported effect of a claim is its
worst comparison.

`hiddenweights sweeps settle` looks at its results repeatedly while it trains. A claim that uses its cells
gets the anytime-valid verdict and intervals, which allow for this. All other claims assume that the number
of seeds was decided before looking.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hiddenweights.analysis.aggregate import LEVEL, describe
from hiddenweights.analysis.table import FINISHED, FROZEN, METRIC, Table
from hiddenweights.claims import verdict as rules
from hiddenweights.claims.contrasts import IDENTITY, SETTING, Cell, Claim, Contrast
from hiddenweights.claims.registry import CLAIMS
from hiddenweights.claims.verdict import CONTRADICTED, HERE, MIN_PAIRS, SUPPORTED
from hiddenweights.flat import parse_value

OUT_OF_SCOPE = "out of scope of these runs"
SETTLE = "settle-"  # the prefix of the plans of `sweeps settle`


@dataclass(frozen=True, slots=True)
class Effect:
    """One comparison: mean, sd, n and interval of a difference or level, in points, against a margin.

    For a fact these are the percentage and the number of cells; sd, interval and margin are NaN.
    """

    words: str
    mean: float
    sd: float
    n: int
    low: float
    high: float
    margin: float
    cells: tuple[str, ...]
    below: bool = False
    """Whether it contradicts the claim."""
    values: tuple[float, ...] = ()
    """The differences themselves, in the order of their seeds."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A claim in one setting: the verdict, and the comparisons behind it."""

    claim: Claim
    setting: str
    verdict: str
    effects: tuple[Effect, ...]
    lacks: tuple[str, ...] = ()
    """How its cells differ from the paper's."""
    anytime: bool = False

    @property
    def worst(self) -> Effect:
        """The worst comparison. For a contradicted claim, the worst of those that contradict it."""
        decisive = [found for found in self.effects if found.below] or self.effects
        return min(decisive, key=lambda found: found.mean - found.margin)


def measure(table: Table, which: Sequence[Claim] = CLAIMS) -> list[Measured]:
    """Every claim in every setting of the table. A claim out of scope has one entry without effects."""
    places = settings(table)
    found = []
    for claim in which:
        own = [one for place, cells in places for one in _measured(claim, place, cells, table)]
        found += own or [Measured(claim, "", OUT_OF_SCOPE, ())]
    return found


def settings(table: Table) -> list[tuple[str, list[Cell]]]:
    """The finished cells per setting, by the text of the setting."""
    finished = table.cells[table.cells["state"] == FINISHED]
    groups = finished.groupby(list(SETTING), dropna=False)
    return [(setting(group.iloc[0]), as_cells(group)) for _, group in groups]


def as_cells(rows: pd.DataFrame) -> list[Cell]:
    """The rows of a table in the form used by claims."""
    flat = pd.DataFrame({name: _scalars(name, rows[name]) for name in IDENTITY}, rows.index, dtype=object)
    columns = (rows[name] for name in ("cell", METRIC, "kept", "validation_accuracy"))
    return [
        Cell(name, own, float(accuracy), _or_none(kept), _or_none(validation))
        for own, name, accuracy, kept, validation in zip(flat.to_dict("records"), *columns, strict=True)
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _scalars(name: str, column: "pd.Series[Any]") -> "pd.Series[Any]":
    """The column with the values of a config: None if missing, int for int fields."""
    plain = column.astype(object).where(column.notna(), None)
    if column.dtype == float:
        plain = plain.map(lambda value: None if value is None else parse_value(name, f"{value:.17g}"))
    return plain.astype(object).where(column.notna(), None)


def _measured(claim: Claim, place: str, cells: list[Cell], table: Table) -> Iterator[Measured]:
    if claim.contrasts is None:
        yield from _unchanged(claim, place, {cell.id for cell in cells}, table)
        return
    looked_at = table.cells["sweeps"].map(lambda names: any(map(_of_settle, names.split())))
    settled = {*table.cells.loc[looked_at, "cell"]}
    for lacks, contrasts in claim.groups(cells):
        anytime = any(cell.id in settled for contrast in contrasts for cell in contrast.cells)
        values, margins = [one.values for one in contrasts], [one.margin for one in contrasts]
        judged = rules.judge(values, margins, anytime=anytime)
        effects = tuple(
            effect(one, below=below, anytime=anytime)
            for one, below in zip(contrasts, judged.below, strict=True)
        )
        word = HERE[judged.verdict] if lacks else judged.verdict
        yield Measured(claim, place, word, effects, lacks, anytime)


def _of_settle(sweep: str) -> bool:
    return sweep.startswith(SETTLE)


def effect(contrast: Contrast, *, below: bool = False, anytime: bool = False) -> Effect:
    """The effect in the finished pairs of `contrast`, with its t interval."""
    values = contrast.values
    level = 1 - (1 - LEVEL) * rules.share(len(values)) if anytime and len(values) >= MIN_PAIRS else LEVEL
    found = describe(values, level=level)
    return Effect(
        words=contrast.words,
        mean=found["mean"],
        sd=found["sd"],
        n=len(values),
        low=found["low"],
        high=found["high"],
        margin=contrast.margin,
        cells=tuple(dict.fromkeys(cell.id for cell in contrast.cells)),
        below=below,
        values=tuple(values),
    )


def _unchanged(claim: Claim, place: str, own: Collection[str], table: Table) -> Iterator[Measured]:
    """The fraction of cells whose weights never changed: a fact for which one cell is enough."""
    cells = table.cells.assign(steady=table.unchanged())
    cells = cells[cells["cell"].isin(own) & cells["model.method"].isin(FROZEN)]
    frozen = cells[cells["initial_weights_checksum"].notna()]
    if len(frozen):
        same = frozen["steady"]
        shown = frozen["cell"] if same.all() else frozen.loc[~same, "cell"]
        share, none = 100 * float(same.mean()), float("nan")
        words = "% of cells with unchanged weights"
        found = Effect(words, share, none, len(frozen), none, none, none, tuple(shown), not same.all())
        yield Measured(claim, place, SUPPORTED if same.all() else CONTRADICTED, (found,))


def verdicts(table: Table, which: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row per entry of `measure`: see `rows`."""
    return rows(measure(table, which))


def rows(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per claim and setting: `claim`, `says`, `setting`, `verdict`, `effect` (in words), `mean`,
    `low`, `high`, `margin` (points), `n`, `comparisons`, `lacks`, `anytime`, `rule`, `sweep` and `cells`."""
    return pd.DataFrame([_row(one) for one in measured])


def _row(one: Measured) -> dict[str, Any]:
    used = dict.fromkeys(cell for found in one.effects for cell in found.cells)
    shown = one.worst if one.effects else Effect("", np.nan, np.nan, 0, np.nan, np.nan, np.nan, ())
    return {
        "claim": one.claim.name,
        "says": one.claim.says,
        "setting": one.setting,
        "verdict": one.verdict,
        "effect": shown.words,
        "mean": shown.mean,
        "low": shown.low,
        "high": shown.high,
        "margin": shown.margin,
        "n": shown.n,
        "comparisons": len(one.effects),
        "lacks": "; ".join(one.lacks),
        "anytime": one.anytime,
        "rule": one.claim.rule,
        "sweep": one.claim.sweep,
        "cells": " ".join(used),
    }


def setting(first: "pd.Series[Any]") -> str:
    """The setting of a cell as text."""
    subset = "" if pd.isna(first["data.subset"]) else f", {first['data.subset']:g} images"
    return f"{first['data.name']}, {first['train.epochs']:g} epochs{subset}, {first['data.protocol']}"
