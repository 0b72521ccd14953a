"""Train the cells that decide a claim, look, plan again, and stop when it is decided or the budget is spent.

Every look is a function of the cells in the store, in the order of their seeds, so a killed `settle`
resumes where it was. The cells that it trains are stored as the plan ``settle-CLAIM``. Results of such
cells were looked at repeatedly, so the analysis uses the anytime-valid rule for claims that use them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console

from hiddenweights.cells.cell import STOPPED_EARLY
from hiddenweights.cells.kind import Kind, kind
from hiddenweights.cells.store import Store, StoreAway
from hiddenweights.claims import plan
from hiddenweights.claims.contrasts import SETTING, Cell, Claim
from hiddenweights.claims.registry import find
from hiddenweights.config import CellConfig, Scalar
from hiddenweights.errors import UserError
from hiddenweights.own import short_slug
from hiddenweights.sweeps import launch
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Curves, Progress
from hiddenweights.sweeps.supervise import RayLost

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_budget(text: str) -> float:
    """``2h``, ``90m`` or ``1.5d`` in seconds. Raises `UserError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not seconds:
        raise UserError(f"--budget: {text!r} must be a time above 0, such as 90m, 2h or 1d")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Question:
    """Claims, and all cells of all seeds that may be trained to decide them."""

    claims: tuple[Claim, ...]
    cells: Mapping[str, Cell]

    @property
    def name(self) -> str:
        """The name of its plan in the store, the same in any order of the claims."""
        return short_slug("settle-" + "-".join(sorted(claim.name for claim in self.claims)).lower())


def ask(cells_of: Mapping[str, Iterable[CellConfig]]) -> Question:
    """The question for the claims in `cells_of`. Each comes with cells of its conditions, with any seed.

    Raises `UserError` if a claim does not exist, or if no number of seeds or none of these cells can decide
    it.
    """
    claims = tuple(map(find, cells_of))
    if not claims:
        raise UserError("CLAIM: name at least one; `hiddenweights analysis claims` lists them")
    found: dict[str, Cell] = {}
    for claim, configs in zip(claims, cells_of.values(), strict=True):
        if claim.contrasts is None:
            raise UserError(
                f"claim {claim.name}: holds or fails in each cell, so more seeds cannot settle it"
            )
        own = plan.with_seeds(map(Cell.of, configs), range(plan.MOST_SEEDS))
        own = [cell for cell in own if cell["seed"] < plan.MOST_SEEDS]
        if not any(claim.groups(cells) for cells in by_setting(own)):
            raise UserError(
                f"claim {claim.name}: the sweep has none of the comparisons it needs: {claim.rule}"
            )
        found |= {cell.id: cell for cell in own}
    return Question(claims=claims, cells=found)


def by_setting(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells of each setting."""
    groups: dict[tuple[Scalar, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.flat[name] for name in SETTING), []).append(cell)
    return [*groups.values()]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The present state of a question in the store."""

    plans: tuple[plan.Plan, ...]
    seconds: Mapping[str, float]
    """The seconds of each finished cell."""
    kinds: Mapping[Kind, tuple[float, str]]
    lost: Mapping[str, float]
    """Cells that failed or have a damaged result, with the seconds that they are known to have cost. Further
    seeds replace them."""

    @property
    def open(self) -> list[plan.Plan]:
        """The plans of the claims that are undecided."""
        return [one for one in self.plans if one.open]

    def expected(self, cell: Cell) -> float | None:
        """The mean seconds of finished cells of the same kind; None if there are none."""
        found = self.kinds.get(kind(cell.config))
        return found[0] if found else None


def look(asked: Question, store: Store) -> Look:
    """Judge and plan from the results in the store. Writes nothing."""
    states = store.states(asked.cells)
    measured, seconds, cells = Measured(), {}, dict(asked.cells)
    for cell, result in store.results(one for one, state in states.items() if state == "finished"):
        final = result["summary"]
        cells[cell] = replace(
            cells[cell],
            accuracy=final["test_accuracy"],
            kept=final.get("kept"),
            validation=final.get("validation_accuracy"),
        )
        measured.add(cells[cell].config, result)
        seconds[cell] = float(result["seconds"])
    lost = {cell: 0.0 for cell, state in states.items() if state == "finished" and cell not in seconds}
    for cell, state in states.items():
        failure = store.failure(cell) if state == "failed" else None
        if failure and not failure["transient"] and failure["error"] != STOPPED_EARLY:
            # The record is that of the last epoch, which stands for the others.
            lost[cell] = failure["epoch"] * float((failure["record"] or {}).get("seconds", 0.0))
    left = [cell for cell in cells.values() if cell.id not in lost]
    plans = [
        one
        for claim in asked.claims
        for own in by_setting(left)
        for one in plan.plans(claim, own, anytime=True)
    ]
    wanted = [cell.config for one in plans for cell in one.cells]
    measured.add_others(store, wanted, asked.cells)
    return Look(plans=tuple(plans), seconds=seconds, kinds=measured.seconds(), lost=lost)


def affordable(now: Look, budget: float) -> list[Cell]:
    """The next cells of all open claims in order, as many as fit into `budget` (seconds).

    Of a kind without measurements, only one cell is taken to measure it. A claim that is `futile` gets none.
    """
    wanted = {cell.id: cell for one in now.open if not futile(one, now, budget) for cell in one.cells}
    chosen, unknown = [], set()
    for cell in wanted.values():
        taken = now.expected(cell)
        if taken is None:
            what = kind(cell.config)
            if budget > 0 and what not in unknown:
                chosen.append(cell)
            unknown.add(what)
        elif taken <= budget:
            chosen.append(cell)
            budget -= taken
        else:
            break
    return chosen


def futile(one: plan.Plan, now: Look, budget: float) -> bool:
    """Whether `budget` (seconds) hardly suffices to decide the claim, even if all of it goes there."""
    found = plan.hope_within(one, budget, now.expected)
    return found is not None and found < plan.FUTILE


def preflight(asked: Question, now: Look, address: str | None) -> list[str]:
    """Raise `UserError` if one of the next cells cannot be trained; see `launch.preflight`."""
    try:
        return launch.preflight([cell.config for one in now.open for cell in one.cells], address)
    except UserError as error:
        names = ", ".join(claim.name for claim in asked.claims)
        raise UserError(f"claim {names}: cannot be settled here: {error}") from None


def settle(asked: Question, store: Store, options: Options, budget: float, console: Console) -> int:
    """Train until the claims are decided (0), or budget, seeds or cells give out (1).

    `budget` is in seconds of training, which the cells of this question in the store have used up in part.
    """
    store.prepare()
    try:
        cells = {cell.id: cell.config for cell in asked.cells.values()}
        # One Ray for all steps: a start takes some ten seconds.
        with launch.executor(asked.name, cells, store, options) as execute:
            while (status := _step(asked, store, options, budget, console, execute)) is None:
                pass
            return status
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; run the same command again to resume") from None
    except (StoreAway, RayLost) as error:
        console.print(f"{error}; run the same command again to resume")
        return 1


def _step(
    asked: Question, store: Store, options: Options, budget: float, console: Console, execute: launch.Execute
) -> int | None:
    """Look and train the next cells. Returns the exit status if there is nothing more to do, else None."""
    now = look(asked, store)
    left = remaining(asked, store, now, budget)
    say(now, console, left)
    if not now.open:
        return 0
    todo = affordable(now, left)
    if not todo:
        console.print(_why_not(now, left))
        return 1
    _write(asked, store, now, [*_trained(asked, store), *(cell.id for cell in todo)])
    if not _train(asked.name, todo, store, options, console, execute):
        console.print("no cell of this step was finished; the claims stay open")
        return 1
    return None


def remaining(asked: Question, store: Store, now: Look, budget: float) -> float:
    """The seconds of `budget` that the cells of this question have not used up, failed ones included."""
    spent = {**now.lost, **now.seconds}
    return budget - sum(spent.get(cell, 0.0) for cell in _trained(asked, store))


def say(now: Look, console: Console, left: float, *, cells: bool = False) -> None:
    """Verdicts and plans as text, with their `cells`, and the claims that `left` seconds hardly decide."""
    for one in now.plans:
        if one.open:
            first, *rest = plan.words(one, now.expected)
            console.print("\n".join([first, *rest] if cells else [first]), markup=False)
            if one.cells and left > 0 and futile(one, now, left):
                console.print(
                    f"{one.claim.name}: given up, because the {plan.hours(left)} that are left "
                    f"decide it with a probability below {plan.FUTILE:.0%}"
                )
        else:
            seeds = [len(contrast.values) for contrast in one.contrasts]
            count = f"{len(seeds)} comparisons" if len(seeds) > 1 else "1 comparison"
            console.print(f"{one.claim.name}: {one.verdict} ({count}, up to {max(seeds)} seeds)")
    if now.lost:
        console.print(f"{len(now.lost)} cells failed or are damaged; further seeds take their places")


def _why_not(now: Look, left: float) -> str:
    wanted = [cell for one in now.open for cell in one.cells]
    if not wanted:
        return f"still open after {plan.MOST_SEEDS} seeds of each comparison"
    if left <= 0:
        return "the budget is spent; the same command with a larger --budget continues"
    if all(futile(one, now, left) for one in now.open if one.cells):
        return "the rest of the budget is too small; the same command with a larger --budget continues"
    needed = min(now.expected(cell) or 0.0 for cell in wanted)
    return (
        f"the budget has {plan.hours(left)} left and a cell takes about {plan.hours(needed)}; "
        "the same command with a larger --budget continues"
    )


def _trained(asked: Question, store: Store) -> list[str]:
    """The cells of the question that it has trained or started."""
    record = store.plan(asked.name) or {}
    return [cell for cell in record.get("trained", []) if cell in asked.cells]


def _write(asked: Question, store: Store, now: Look, trained: Sequence[str]) -> None:
    """Store which cells will be trained and looked at, before any of them is trained."""
    record = store.plan(asked.name) or {}
    used = (
        cell.id for one in now.plans for own in one.contrasts for cell in own.cells if cell.id in now.seconds
    )
    store.write_plan(
        asked.name,
        {
            "name": asked.name,
            "cells": [*dict.fromkeys([*record.get("cells", []), *used, *trained])],
            "trained": [*dict.fromkeys([*record.get("trained", []), *trained])],
            "launched": datetime.now(UTC).isoformat(),
        },
    )


def _train(
    name: str,
    todo: Sequence[Cell],
    store: Store,
    options: Options,
    console: Console,
    execute: launch.Execute,
) -> bool:
    """Train the cells. Returns whether any of them is finished now, by this launch or another one."""
    cells = {cell.id: cell.config for cell in todo}
    planned = launch.plan(name, cells, store)
    progress = Progress(name, cells, Curves(cells), console)
    with progress:
        launch.train(planned, store, options, progress, execute)
    return bool(progress.accuracies or planned.finished)
