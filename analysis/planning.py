"""Plans for the open claims of a table: the next cells, their probabilities and their cost."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from hiddenweights.analysis.claims import Measured, settings
from hiddenweights.analysis.table import FINISHED, Table
from hiddenweights.cells.kind import KIND
from hiddenweights.claims import plan
from hiddenweights.claims.contrasts import Cell
from hiddenweights.claims.verdict import HERE, OPEN

Seconds = Callable[[Cell], float | None]


@dataclass(frozen=True, slots=True)
class Open:
    """An open claim in one setting, and its plan."""

    setting: str
    plan: plan.Plan


def plans(table: Table, measured: Sequence[Measured]) -> Iterator[Open]:
    """A plan for each open claim of `measured`: more seeds for the conditions of the table."""
    own = dict(settings(table))
    for one in measured:
        if one.verdict not in (OPEN, HERE[OPEN]):
            continue
        used = {cell for found in one.effects for cell in found.cells}
        conditions = {cell.condition for cell in own[one.setting] if cell.id in used}
        finished = [cell for cell in own[one.setting] if cell.condition in conditions]
        seeds = {*range(plan.MOST_SEEDS), *(cell["seed"] for cell in finished)}
        cells = plan.with_seeds(finished, sorted(seeds))
        for found in plan.plans(one.claim, cells, anytime=True):
            if found.lacks == one.lacks:
                yield Open(one.setting, found)


def seconds(table: Table) -> Seconds:
    """The mean seconds of the finished cells of this kind in the table; None if there are none."""
    finished = table.cells[table.cells["state"] == FINISHED]
    columns = finished[list(KIND)].astype(object)
    kinds = columns.where(columns.notna(), None).apply(tuple, axis=1)
    means = finished["seconds"].groupby(kinds).mean().to_dict()
    return lambda cell: means.get(tuple(cell.flat[name] for name in KIND))


def lines(found: Iterable[Open], taken: Seconds) -> list[str]:
    """The plans as text."""
    words = []
    for one in found:
        first, *cells = plan.words(one.plan, taken)
        words += [f"{one.setting}: {first}", *cells]
    return words or ["no claim is open in these runs"]


def as_frame(found: Iterable[Open], taken: Seconds) -> pd.DataFrame:
    """One row per claim, setting and cell, with the mean seconds of its kind and the step's probability."""
    columns = ("claim", "setting", "cell", "name", "seed", "seconds", "chance")
    rows = [
        (one.plan.claim.name, one.setting, cell.id, cell.name, cell["seed"], taken(cell), one.plan.chance)
        for one in found
        for cell in one.plan.cells
    ]
    return pd.DataFrame(rows, columns=columns)
