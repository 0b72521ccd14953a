"""``hiddenweights sweeps list | show | launch | status | doctor | sync``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal

import tyro
from rich.console import Console

from hiddenweights import cli, own
from hiddenweights.cells.store import PATIENCE, Store, StoreAway, default_store
from hiddenweights.config import Scalar
from hiddenweights.errors import UserError, choices_error
from hiddenweights.flat import from_dict
from hiddenweights.identity import short_name
from hiddenweights.sweeps import cost, experiments, launch
from hiddenweights.sweeps.doctor import doctor
from hiddenweights.sweeps.grid import Arm, Axis, Cells, Draw, Sweep, parse_axes, parse_settings
from hiddenweights.sweeps.options import Executor, Options
from hiddenweights.sweeps.progress import Curves, Progress, clock
from hiddenweights.sweeps.supervise import RayLost

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLAIM")]
Sets = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")]
Axes = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE,VALUE")]


def list_() -> None:
    """All sweeps: their cells, and how many of them other sweeps have too."""
    console = _console()
    members = experiments.memberships()
    total = 0
    for name in experiments.registered():
        sweep = experiments.sweep(name)
        cells = sweep.cells()
        shared = sum(len(members[cell]) > 1 for cell in cells)
        total += len(cells)
        console.print(f"{name:<16} {len(cells):>4} cells, {shared:>3} shared   {sweep.title}")
    console.print(f"together {len(members)} cells, not {total}: a cell that two sweeps share is trained once")


def show(name: Name, set: Sets = (), axis: Axes = ()) -> None:
    """What a sweep claims, costs and consists of.

    Args:
        name: The sweep; FILE.py:FUNCTION or module:FUNCTION for one of your own.
        set: Set a field in all cells; it takes the place of an axis.
        axis: Give an axis other values.
    """
    console = _console()
    sweep, cells = _sweep(name, set, axis)
    console.print(sweep.title + "\n")
    facts = {"Claim": sweep.claim, "Expect": sweep.expect, "Cost": _estimate(sweep), "Run": sweep.command()}
    for label, fact in facts.items():
        if fact:
            console.print(f"{label + ':':<8}{fact}")
    for arm in sweep.arms:
        console.print(_arm(arm))
    methods = Counter[str](config.model.method for config in cells.values())
    console.print(f"{len(cells)} cells ({_counts(methods)}){_repeated(cells)}")
    members = experiments.memberships()
    others = Counter(other for cell in cells for other in members.get(cell, ()) if other != sweep.name)
    if others:
        console.print(f"shared with other sweeps: {_counts(others)}")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())


def _estimate(sweep: Sweep) -> str:
    if not sweep.gpu_hours:
        return ""
    beyond = f" for the cells beyond those of {sweep.beyond}" if sweep.beyond else ""
    return f"about {sweep.gpu_hours:,g} GPU-hours{beyond} (estimated)"


def _arm(arm: Arm) -> str:
    axes = "  ".join(_axis(*axis) for axis in arm.axes.items())
    if arm.found_by:
        return f"finetune: {axes}  of what is found by {_arm(arm.found_by)}"
    return f"{arm.base.model.method}: {axes}"


def _axis(field: str, axis: Axis) -> str:
    return f"{field}={axis if isinstance(axis, Draw) else ','.join(map(str, axis))}"


def launch_(
    name: Name,
    set: Sets = (),
    axis: Axes = (),
    samples: int = 16,
    tuned: str | None = None,
    store: str | None = None,
    dry_run: bool = False,
    executor: Executor = "ray",
    address: str | None = None,
    gpus: float | None = None,
    ranks: int | None = None,
    rerun: Literal["failed", "damaged"] | None = None,
    time_limit: float | None = None,
    retries: int = 3,
    patience: float = PATIENCE,
    first_worker: float = Options.first_worker,
    price: float | None = None,
) -> int:
    """Train the cells of a sweep that the store does not have. Run it again to go on, or to extend it.

    Exit status: 0 when every cell is in the store, 1 when some failed, 130 when stopped.

    Args:
        name: The sweep; FILE.py:FUNCTION or module:FUNCTION for one of your own.
        set: Set a field in all cells; it takes the place of an axis.
        axis: Give an axis other values, or add one; FIELD=loguniform(LOW,HIGH), uniform, choice: search it.
        samples: Points drawn for every combination, where an axis is searched.
        tuned: A search that was launched before, whose best values to take.
        store: Folder or URL (s3://bucket/runs) of the results. Unset: $HIDDENWEIGHTS_STORE, else runs.
        dry_run: Only say which cells there are, how many exist, and what the rest would cost.
        executor: `inline` trains one cell after the other in this process, without Ray.
        address: A running Ray cluster (`auto`, or host:port). Unset: Ray on this machine, for the launch.
        gpus: GPUs a cell; a fraction shares a card. Unset: by the network's size, where there are any.
        ranks: Processes that train a cell together, data parallel, on one machine. Unset: one per GPU of it.
        rerun: `failed` trains cells again that failed before, `damaged` those with a damaged result.
        time_limit: Seconds that one attempt at a cell may take (with Ray).
        retries: How often a cell is taken up again whose worker died (with Ray).
        patience: Seconds to wait for a store that is away, read-only or full.
        first_worker: Seconds to wait for a cluster's first worker, if nobody knows whether one could fit.
        price: Dollars an hour of one slot (a GPU, or a CPU where there is none), to estimate the cost.
    """
    console = _console()
    _check_numbers(
        samples=samples,
        gpus=gpus,
        ranks=ranks,
        time_limit=time_limit,
        retries=retries,
        patience=patience,
        price=price,
        first_worker=first_worker,
    )
    results = Store(store or default_store())
    results.check()
    sweep, cells = _sweep(name, set, axis, samples)
    if sweep.searched() and any(config.data.protocol == "paper" for config in cells.values()):
        raise UserError("data.protocol: a search selects, and so needs a validation split")
    if tuned:
        cells = cells.tuned(_winners(results, tuned))
    options = Options(
        executor=executor,
        address=address,
        gpus=gpus,
        ranks=ranks,
        retries=retries,
        time_limit=time_limit,
        patience=patience,
        first_worker=first_worker,
        search=sweep.searched(),
    )
    options.processes()  # they must agree
    name = sweep.name  # of a sweep of the user's own, one that can name a file
    planned = launch.plan(name, cells, results, rerun=rerun)
    headline = _headline(planned, cells, results) + _cost(planned, sweep, gpus, price)
    console.print(headline)
    for cell, why in planned.damaged.items():
        console.print(f"damaged: {cell}: {why}", markup=False)
    if dry_run:
        for cell, config in cells.items():
            state = (
                "damaged"
                if cell in planned.damaged
                else "missing"
                if cell in planned.todo
                else "failed"
                if cell in planned.failed
                else "finished"
            )
            console.file.write(f"{cell}  {state:<8}  {short_name(config)}\n")  # there may be 100,000
        console.print(headline)  # again, since the list may have scrolled it away
        return 0
    for line in launch.preflight(planned.todo.values(), address):
        console.print(line, markup=False)
    if planned.todo:
        from hiddenweights.sweeps import tracking  # wandb takes a second, which only training needs

        console.print(f"W&B: {tracking.announce()}")
    results.prepare()
    for cell in planned.damaged.keys() & planned.todo.keys():
        results.discard_damaged(cell)
    launched = datetime.now(UTC).isoformat()
    axes = parse_axes(axis)
    plain = {field: str(values) if isinstance(values, Draw) else values for field, values in axes.items()}
    record = {
        "name": name,
        "cells": list(cells),
        "axes": plain,
        "overrides": parse_settings(set) | ({"tuned": tuned} if tuned else {}),
        "launched": launched,
    }
    results.write_plan(name, record)
    curves = Curves(cells, axes)
    progress = Progress(name, cells, curves, console)
    for cell, (accuracy, seconds) in planned.finished.items():
        progress.known(cell, accuracy, seconds)
    left = {cell: why for cell, why in planned.damaged.items() if cell not in planned.todo}
    for cell, message in {**planned.failed, **left}.items():
        progress.failed(cell, message)
    progress.early |= {*planned.early}
    try:
        with launch.stoppable(), progress:
            launch.run(planned, results, options, progress)
    except KeyboardInterrupt:
        console.print(f"stopped: {progress.counts()}; the same command goes on from there")
        return 130
    except (StoreAway, RayLost) as error:
        console.print(f"{error}: {progress.counts()}; the same command goes on from there")
        return 1
    if sweep.searched():
        best = launch.winners(sweep, cells, results)
        results.write_plan(name, record | {"winners": best})
        for where, found in best.items():
            console.print(f"best for {where}: " + ", ".join(f"{field}={v}" for field, v in found.items()))
    return _conclude(progress, curves, results, console, damaged=bool(left))


def _conclude(progress: Progress, curves: Curves, store: Store, console: Console, *, damaged: bool) -> int:
    console.print(curves.table(progress.accuracies))
    console.print(f"{progress.counts()} · {clock(progress.elapsed())} · results in {store.uri}")
    if progress.failures:
        reasons = Counter(progress.failures.values())
        for reason, n in reasons.most_common():
            console.print(f"{n} failed: {reason}", markup=False)
        again = "; `--rerun damaged` trains those with a damaged result" if damaged else ""
        console.print(f"`--rerun failed` tries them again{again}")
        return 1
    console.print(f"next: hiddenweights analysis figure {progress.name} --from {store.uri}")
    return 0


def settle_(
    claims: Names,
    budget: str,
    sweep: str | None = None,
    set: Sets = (),
    axis: Axes = (),
    store: str | None = None,
    dry_run: bool = False,
    executor: Executor = "ray",
    address: str | None = None,
    gpus: float | None = None,
    time_limit: float | None = None,
    retries: int = 3,
    patience: float = PATIENCE,
) -> int:
    """Train, seed by seed, what decides claims, and stop once it does. Run it again to go on.

    Exit status: 0 when every claim is decided, 1 when some stay open, 130 when stopped.

    Args:
        claims: Claims by the names that `analysis claims` gives them.
        budget: The time that all trained cells may take together, such as 90m, 2h or 1d.
        sweep: The sweep whose conditions are compared. Unset: the one that each claim is about.
        set: Set a field in all cells; it takes the place of an axis.
        axis: Give an axis other values. The seeds are what is planned.
        store: Folder or URL (s3://bucket/runs) of the results. Unset: $HIDDENWEIGHTS_STORE, else runs.
        dry_run: Only say which cells come next, how likely they settle the claims, and what they cost.
        executor: `inline` trains one cell after the other in this process, without Ray.
        address: A running Ray cluster (`auto`, or host:port). Unset: Ray on this machine, for each step.
        gpus: GPUs a cell; a fraction shares a card. Unset: by the network's size, where there are any.
        time_limit: Seconds that one attempt at a cell may take (with Ray).
        retries: How often a cell is taken up again whose worker died (with Ray).
        patience: Seconds to wait for a store that is away, read-only or full.
    """
    # Here, because scipy takes half a second, which no other command needs.
    from hiddenweights.claims.ramanujan2020 import find
    from hiddenweights.sweeps import settle

    console = _console()
    _check_numbers(gpus=gpus, time_limit=time_limit, retries=retries, patience=patience)
    allowed = settle.parse_budget(budget)
    if any(text.partition("=")[0].strip() == "seed" for text in (*set, *axis)):
        raise UserError("seed: cannot be set, because the seeds are what is planned")
    results = Store(store or default_store())
    results.check()
    sweeps = {name: sweep or find(name).sweep for name in claims}
    asked = settle.ask({name: [*_sweep(of, set, axis)[1].values()] for name, of in sweeps.items()})
    options = Options(
        executor=executor,
        address=address,
        gpus=gpus,
        retries=retries,
        time_limit=time_limit,
        patience=patience,
    )
    now = settle.look(asked, results)
    warnings = settle.preflight(asked, now, address)
    if dry_run or not now.open:
        settle.say(now, console, cells=True)
        return 1 if now.open else 0
    from hiddenweights.sweeps import tracking  # wandb takes a second, which only training needs

    for line in [*warnings, f"W&B: {tracking.announce()}"]:
        console.print(line, markup=False)
    return settle.settle(asked, results, options, allowed, console)


def status(name: Name, set: Sets = (), axis: Axes = (), store: str | None = None) -> int:
    """How far a sweep is, from the store alone. Exit status 0 when every cell is finished, else 1.

    Args:
        name: The sweep; FILE.py:FUNCTION or module:FUNCTION for one of your own.
        set: As given to `launch`. Without --set and --axis: the sweep as it was last launched.
        axis: As given to `launch`.
        store: Folder or URL of the results. Unset: $HIDDENWEIGHTS_STORE, else runs.
    """
    console = _console()
    results = Store(store or default_store())
    results.check()
    saved = None if set or axis else results.plan(own.slug(name))
    cells = saved["cells"] if saved else list(_sweep(name, set, axis)[1])
    states = results.states(cells)
    configs, accuracies = {}, {}
    damaged: dict[str, str] = {}
    ended = (cell for cell, state in states.items() if state == "finished")
    for cell, result in results.results(ended, damaged):
        configs[cell], accuracies[cell] = from_dict(result["config"]), result["summary"]["test_accuracy"]
    counts = Counter("damaged" if cell in damaged else state for cell, state in states.items())
    kinds = ("finished", "running", "failed", "stopped", "missing", *(["damaged"] if damaged else []))
    console.print(
        f"{own.slug(name)}: {len(cells)} cells: {', '.join(f'{counts[kind]} {kind}' for kind in kinds)}"
    )
    if configs:
        curves = Curves(configs, saved.get("axes", {}) if saved else parse_axes(axis))
        console.print(curves.table(accuracies))
    for cell, state in states.items():
        if state == "failed" and (failure := results.failure(cell)):
            console.print(f"failed: {cell}: epoch {failure['epoch']}: {failure['message']}", markup=False)
    for cell, why in damaged.items():
        console.print(f"damaged: {cell}: {why}", markup=False)
    return 0 if counts["finished"] == len(cells) else 1


def sync(store: str | None = None) -> int:
    """Upload the offline W&B runs of a store; what is uploaded already is left alone.

    Args:
        store: Folder of the results. Unset: $HIDDENWEIGHTS_STORE, else runs.
    """
    from hiddenweights.sweeps import tracking

    return tracking.sync(Store(store or default_store()), _console())


def _sweep(
    name: str, settings: tuple[str, ...], axes: tuple[str, ...], samples: int = 16
) -> tuple[Sweep, Cells]:
    sweep = experiments.sweep(name).override(parse_settings(settings), parse_axes(axes))
    sweep = replace(sweep, arms=tuple(replace(arm, samples=samples) for arm in sweep.arms))
    return sweep, sweep.cells()


def _winners(store: Store, name: str) -> Mapping[str, Mapping[str, Scalar]]:
    searches = {plan: (store.plan(plan) or {}).get("winners") for plan in store.plans()}
    if not searches.get(name):
        raise choices_error("--tuned", name, [plan for plan, found in searches.items() if found])
    return searches[name]  # type: ignore[return-value]


def _headline(planned: launch.Plan, cells: Cells, store: Store) -> str:
    finished = len(planned.finished)
    failed = f", {len(planned.failed)} failed before" if planned.failed else ""
    failed += f", {len(planned.damaged)} damaged" if planned.damaged else ""
    return (
        f"{planned.name}: {len(cells)} cells{_repeated(cells)}: {finished} in {store.uri}{failed}, "
        f"{len(planned.todo)} to train"
    )


def _repeated(cells: Cells) -> str:
    return f" ({cells.repeated} more that the axes name twice, kept once)" if cells.repeated else ""


def _cost(planned: launch.Plan, sweep: Sweep, gpus: float | None, price: float | None) -> str:
    """What is left to train will cost: measured on finished cells of the same kind, or else estimated."""
    hours, unknown = cost.costs(planned.todo.values(), planned.measured, gpus)
    words = [f"about {cost.describe(hours, price)}, as measured"] if hours else []
    if unknown:
        words.append(f"{unknown} of a kind not measured yet")
        if sweep.gpu_hours:
            whole = cost.describe({"GPU": sweep.gpu_hours}, price)
            beyond = f" beyond those of {sweep.beyond}" if sweep.beyond else ""
            words[-1] += (
                f" (an estimate: {whole} for the {len(sweep.cells())} cells of {sweep.name} as it is{beyond})"
            )
    return "; ".join(["", *words])


def _check_numbers(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and (
            not value >= 0 or (value == 0 and name in ("time_limit", "samples", "ranks"))
        ):
            least = "above 0" if name in ("time_limit", "samples", "ranks") else "at least 0"
            raise UserError(f"--{name.replace('_', '-')}: {value!r} must be {least}")


def _console() -> Console:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # a log has no edge
    return console


COMMANDS: dict[str, cli.Command] = {
    "list": list_,
    "show": show,
    "launch": launch_,
    "settle": settle_,
    "status": status,
    "doctor": doctor,
    "sync": sync,
}
