"""``hiddenweights sweeps launch | settle``: the commands that train."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from shlex import quote
from typing import Annotated

import tyro
from rich.console import Console

from hiddenweights import own
from hiddenweights.cells.format import Damaged
from hiddenweights.cells.store import Json, Store, StoreAway, default_store
from hiddenweights.config import Scalar
from hiddenweights.errors import UserError, choices_error
from hiddenweights.flat import flatten, parse_conditions
from hiddenweights.identity import short_name
from hiddenweights.sweeps import cost, experiments, launch
from hiddenweights.sweeps.arguments import Axes, Name, Names, Sets, chosen, console_for_people, repeated
from hiddenweights.sweeps.grid import Cells, SearchedAxis, Sweep, parse_axes, parse_settings, side
from hiddenweights.sweeps.options import Options, above_zero, at_least_zero
from hiddenweights.sweeps.page import check_installed, served
from hiddenweights.sweeps.progress import Curves, Progress, clock, name_what_differs
from hiddenweights.sweeps.supervise import RayLost
from hiddenweights.sweeps.tracking_mode import announce

LaunchOptions = Annotated[Options, tyro.conf.arg(name="")]


def launch_(
    name: Name,
    set: Sets = (),
    axis: Axes = (),
    where: Axes = (),
    samples: int | None = None,
    tuned: str | None = None,
    store: str | None = None,
    dry_run: bool = False,
    rerun_failed: bool = False,
    rerun_damaged: bool = False,
    price: float | None = None,
    page: bool = False,
    options: LaunchOptions = Options(),  # noqa: B008 (it is frozen)
) -> int:
    """Train the cells of a sweep that the store does not have. Run it again to resume or to extend it.

    Exit status: 0 if every cell is finished or stopped early by a search, 1 if some failed, 130 if stopped.

    Args:
        name: The sweep. For your own sweep: FILE.py:FUNCTION or module:FUNCTION.
        set: Set a field in all cells. It replaces an axis over this field.
        axis: Replace or add an axis. To search: loguniform(LOW,HIGH), uniform(LOW,HIGH), choice(VALUE,VALUE).
        where: Train only cells with this value (or one of these) now. The others still belong to the sweep.
        samples: For a search: number of points for each combination of the other axes. If not given: 16.
        tuned: Use the best values of this earlier search.
        store: Folder or URL (s3://bucket/runs) of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
        dry_run: Train nothing: list the cells, count the finished ones, and estimate the cost of the rest.
        rerun_failed: Train failed cells again.
        rerun_damaged: Train cells with a damaged result again.
        price: Dollars per hour of one GPU (without GPUs: of one CPU), for the estimate of the cost.
        page: Keep the report current while cells finish, and serve it on this machine.
    """
    above_zero("samples", samples)
    at_least_zero("price", price)
    console, results = console_for_people(), Store(store or default_store())
    results.check()
    if page:
        check_installed()
    declared = experiments.sweep(name)
    sweep, cells = chosen(name, set, axis, samples)
    cells, notes = _tuned(sweep, results, own.slug(tuned), set, axis) if tuned else (cells, [])
    part = cells.where(parse_conditions(where))
    planned = launch.plan(
        sweep.name, part, results,
        search=sweep.searched(), rerun_failed=rerun_failed, rerun_damaged=rerun_damaged,
    )  # fmt: skip
    headline = _headline(planned, part, results) + _cost(planned, declared, options.gpus, price)
    console.print(headline)
    for line in [*notes, *(f"damaged: {cell}: {why}" for cell, why in planned.damaged.items())]:
        console.print(line, markup=False)
    if dry_run:
        _print_cells(planned, console)
        console.print(headline)  # printed again, because the list may have scrolled it away
        return 0
    for line in launch.preflight(planned.todo.values(), options.address):
        console.print(line, markup=False)
    record = _record(sweep.name, cells, axis, parse_settings(set) | ({"tuned": tuned} if tuned else {}))
    with served(results.uri, console) if page else contextlib.nullcontext():
        return _train(sweep, planned, results, record, replace(options, search=sweep.searched()), console)


def _record(name: str, cells: Cells, axes: tuple[str, ...], overrides: Mapping[str, Scalar]) -> Json:
    """What the store keeps of a launch."""
    return {
        "name": name,
        "cells": list(cells),
        "axes": {
            field: str(values) if isinstance(values, SearchedAxis) else values
            for field, values in parse_axes(axes).items()
        },
        "overrides": overrides,
        "launched": datetime.now(UTC).isoformat(),
    }


def _train(
    sweep: Sweep, planned: launch.Plan, store: Store, record: Json, options: Options, console: Console
) -> int:
    """Train the planned cells, show the progress on `console`, and return the exit status."""
    if planned.todo:
        console.print(f"W&B: {announce(options.address)}", markup=False)
    store.prepare()
    for cell in planned.damaged.keys() & planned.todo.keys():
        store.discard_damaged(cell)
    with contextlib.suppress(Damaged):
        last = store.plan(planned.name) or {"cells": ()}
        record |= {"winners": last.get("winners", {})}  # an earlier search holds until another has ended
        if gone := {*last["cells"]} - {*record["cells"]}:
            console.print(
                f"{len(gone)} cells of the last launch of {planned.name} are not in this one. They stay in "
                "the store, but its figures show this launch. To have both, give all values of the axis."
            )
    store.write_plan(planned.name, record)

    # The progress starts with the results of earlier launches.
    curves = Curves(planned.cells)
    progress = Progress(planned.name, planned.cells, curves, console)
    for cell, (accuracy, seconds) in planned.finished.items():
        progress.known(cell, accuracy, seconds)
    left = {cell: why for cell, why in planned.damaged.items() if cell not in planned.todo}
    for cell, message in {**planned.failed, **left}.items():
        progress.failed(cell, message)
    progress.early |= {*planned.early}

    try:
        with progress:
            launch.run(planned, store, options, progress)
    except KeyboardInterrupt:
        words = f"stopped: {progress.counts()}; run the same command again to resume"
        raise KeyboardInterrupt(words) from None
    except (StoreAway, RayLost) as error:
        console.print(f"{error}: {progress.counts()}; run the same command again to resume")
        return 1
    if sweep.searched():
        best = launch.winners(sweep, record["cells"], store)
        store.write_plan(planned.name, record | {"winners": best})
        for where, found in best.items():
            console.print(f"best for {where}: " + ", ".join(f"{field}={v}" for field, v in found.items()))
    return _conclude(progress, curves, store, console, damaged=bool(left))


def _print_cells(planned: launch.Plan, console: Console) -> None:
    """Print each cell with its state, its name and what else distinguishes it, one per line."""
    names = [short_name(config).split() for config in planned.cells.values()]
    name_what_differs(names, [flatten(config) for config in planned.cells.values()], "model.k")
    for cell, words in zip(planned.cells, names, strict=True):
        if cell in planned.damaged:
            state = "damaged"
        elif cell in planned.todo:
            state = "missing"
        elif cell in planned.early:
            state = "stopped"
        else:
            state = "failed" if cell in planned.failed else "finished"
        console.file.write(f"{cell}  {state:<8}  {' '.join(words)}\n")  # there may be 100,000 cells


def _conclude(progress: Progress, curves: Curves, store: Store, console: Console, *, damaged: bool) -> int:
    console.print(curves.table(progress.accuracies))
    console.print(f"{progress.counts()} · {clock(progress.elapsed())} · results in {store.uri}")
    if progress.failures:
        reasons = Counter(progress.failures.values())
        for reason, n in reasons.most_common():
            console.print(f"{n} failed: {reason}", markup=False)
        again = "; `--rerun-damaged` trains those with a damaged result" if damaged else ""
        console.print(f"`--rerun-failed` tries them again{again}")
        return 1
    console.print(
        f"next: hiddenweights analysis figure {progress.name} --from {quote(store.uri)}", markup=False
    )
    return 0


def settle_(
    claims: Names,
    budget: str,
    sweep: str | None = None,
    set: Sets = (),
    axis: Axes = (),
    store: str | None = None,
    dry_run: bool = False,
    options: LaunchOptions = Options(),  # noqa: B008
) -> int:
    """Train cells seed by seed until they decide the claims. Run it again to resume.

    Exit status: 0 if every claim is decided, 1 if some stay open, 130 if stopped.

    Args:
        claims: One or more claims. `hiddenweights analysis claims` lists their names. For your own claim:
            FILE.py:NAME.
        budget: The total training time, for example 90m, 2h or 1d.
        sweep: The sweep whose conditions are compared. If not given: the sweep of each claim.
        set: Set a field in all cells. It replaces an axis over this field.
        axis: Replace the values of an axis. The seeds are chosen by the plan.
        store: Folder or URL (s3://bucket/runs) of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
        dry_run: Train nothing: show the next cells, their probability to decide the claims, and the cost.
    """
    from hiddenweights.claims.registry import find as claim
    from hiddenweights.sweeps import settle  # importing scipy takes half a second

    console = console_for_people()
    allowed = settle.parse_budget(budget)
    if any(text.partition("=")[0].strip() == "seed" for text in (*set, *axis)):
        raise UserError("seed: cannot be set, because the plan chooses the seeds")
    results = Store(store or default_store())
    results.check()
    sweeps = {name: sweep or claim(name).sweep for name in claims}
    asked = settle.ask({name: [*chosen(of, set, axis)[1].values()] for name, of in sweeps.items()})
    now = settle.look(asked, results)
    if dry_run or not now.open:
        settle.say(now, console, settle.remaining(asked, results, now, allowed), cells=True)
        return 1 if now.open else 0
    for line in [*settle.preflight(asked, now, options.address), f"W&B: {announce(options.address)}"]:
        console.print(line, markup=False)
    return settle.settle(asked, results, options, allowed, console)


def _tuned(
    sweep: Sweep, store: Store, name: str, set: tuple[str, ...], axes: tuple[str, ...]
) -> tuple[Cells, list[str]]:
    """The cells with the best values of the search `name`, and a line per side for which it has none.

    Raises `UserError` if it has none for any side, or if it chose a field that --set or --axis names, too.
    """
    searches = {plan: found for plan in store.plans() if (found := (store.plan(plan) or {}).get("winners"))}
    if not searches:
        raise UserError(f"--tuned {name}: no search has ended in {store.uri}; launch it first")
    if name not in searches:
        raise choices_error("--tuned", name, searches)
    winners: Mapping[str, Mapping[str, Scalar]] = searches[name]
    given = parse_settings(set).keys() | parse_axes(axes).keys()
    if both := {field for best in winners.values() for field in best} & given:
        fields = ", ".join(sorted(both))
        raise UserError(
            f"--tuned: {name} chooses {fields}, and so does --set or --axis; leave out one of them"
        )
    sides = [*dict.fromkeys(map(side, sweep.cells().values()))]
    left = [one for one in sides if one not in winners]
    if left == sides:
        raise UserError(
            f"--tuned: {name} has no values for {', '.join(sides)}; it has some for {', '.join(winners)}"
        )
    return sweep.cells(winners), [f"not tuned: {one}: {name} has no values for it" for one in left]


def _headline(planned: launch.Plan, cells: Cells, store: Store) -> str:
    finished = len(planned.finished)
    failed = f", {len(planned.failed)} failed before" if planned.failed else ""
    failed += f", {len(planned.damaged)} damaged" if planned.damaged else ""
    return (
        f"{planned.name}: {len(cells)} cells{repeated(cells)}: {finished} in {store.uri}{failed}, "
        f"{len(planned.todo)} to train"
    )


def _cost(planned: launch.Plan, declared: Sweep, gpus: float | None, price: float | None) -> str:
    """The cost of the remaining cells: measured on finished cells of the same kind, or else estimated."""
    hours, unknown = cost.costs(planned.todo.values(), planned.measured, gpus)
    where = " and ".join(planned.measured.processors(planned.todo.values(), hours))
    measured = f"as measured on {where}" if where else "as measured"
    words = [f"about {cost.describe(hours, price)}, {measured}"] if hours else []
    if unknown:
        words.append(f"{unknown} of a kind not measured yet")
        if declared.gpu_hours:
            whole = cost.describe({"GPU": declared.gpu_hours}, price)
            beyond = f" beyond those of {declared.beyond}" if declared.beyond else ""
            words[-1] += (
                f" (an estimate without --set and --axis: {whole} for the {len(declared.cells())} cells of"
                f" {declared.name}{beyond})"
            )
    return "; ".join(["", *words])
