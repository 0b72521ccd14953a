"""Train the missing cells of a sweep, in this process or on Ray. The store decides which are missing."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

from hiddenweights import own
from hiddenweights.cells.cell import STOPPED_EARLY, installed_trackers, run_cell
from hiddenweights.cells.inputs import check_code, check_inputs
from hiddenweights.cells.store import Busy, Json, LeaseLost, Store, StoreAway
from hiddenweights.config import METHODS, Scalar, own_code
from hiddenweights.errors import UserError
from hiddenweights.flat import flatten, from_dict
from hiddenweights.garbage import collect_rarely
from hiddenweights.identity import Resolved, resolve
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.grid import Sweep, side
from hiddenweights.sweeps.options import Options
from hiddenweights.sweeps.progress import Progress, outcome
from hiddenweights.sweeps.ray_work import Work, failed_since
from hiddenweights.sweeps.supervise import Supervisor

NARROWEST = 1 / 64  # the width at which the small networks have one channel in their first layer
POLL = 2.0  # seconds between checks of cells that another launch trains
Execute = Callable[..., None]  # (cells, measured, progress, alone=False); see `Supervisor`


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned launch: all cells, and the cells to train."""

    name: str
    cells: Mapping[str, Resolved]
    todo: Mapping[str, Resolved]
    finished: Mapping[str, tuple[float, float]]
    """Accuracy and seconds of every finished cell."""
    failed: Mapping[str, str]
    """Cells that failed before and are not trained again, with reasons."""
    damaged: Mapping[str, str]
    """Cells with damaged results, with reasons. They are in `todo` only if that was asked."""
    early: Collection[str]
    """Cells that a search stopped early, if this is one."""
    measured: Measured
    """Measurements of finished cells of these kinds."""


def plan(
    name: str,
    cells: Mapping[str, Resolved],
    store: Store,
    *,
    search: bool = False,
    rerun_failed: bool = False,
    rerun_damaged: bool = False,
) -> Plan:
    """Sort the cells by their state in the store. Writes nothing.

    A `search` leaves out the cells that a search has stopped early. `rerun_failed` and `rerun_damaged` plan
    cells again that failed before, or have a damaged result.

    Raises `UserError` if a cell trains a subnetwork that neither the store nor the plan has.
    """
    states = store.states(cells)
    failed: dict[str, str] = {}
    early: set[str] = set()
    for cell, state in states.items():
        failure = store.failure(cell) if state == "failed" else None
        if failure and failure["error"] == STOPPED_EARLY:
            early |= {cell} if search else set()
        elif failure and not failure["transient"] and not rerun_failed:
            failed[cell] = failure["message"]
    finished: dict[str, tuple[float, float]] = {}
    damaged: dict[str, str] = {}
    measured = Measured()
    ended = (cell for cell, state in states.items() if state == "finished")
    for cell, result in store.results(ended, damaged):
        finished[cell] = outcome(result)
        measured.add(cells[cell], result)
    todo = {
        cell: config
        for cell, config in cells.items()
        if (states[cell] != "finished" or (cell in damaged and rerun_damaged))
        and cell not in failed
        and cell not in early
    }
    for parent in {config.model.init_from for config in todo.values()} - cells.keys():
        if parent and not store.has_ticket(parent):
            raise UserError(f"model.init_from: cell {parent} has no ticket in {store.uri}; train it first")
    measured.add_others(store, todo.values(), cells)
    return Plan(
        name=name,
        cells=cells,
        todo=todo,
        finished=finished,
        failed=failed,
        damaged=damaged,
        early=early,
        measured=measured,
    )


def preflight(configs: Iterable[Resolved], address: str | None) -> list[str]:
    """Raise `UserError` for data and networks that the workers could not load.

    Returns the lines of these checks. Runs in a separate process, because loading needs torch and memory, and
    the launch needs neither. With the `address` of a cluster only the user's code is checked: the data is on
    the workers.
    """
    needs = {
        (
            config.data,
            config.model.arch,
            config.model.width,
            config.model.method,
            config.train.precision,
        ): config
        for config in configs
        if not _fits_digits(config)
    }
    if address:
        needs = {
            key: config for key, config in needs.items() if own_code(config) or own.is_own(config.model.arch)
        }
    if not needs:
        return []
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe(duplex=False)
    arguments = (theirs, check_code if address else check_inputs, [*needs.values()], own.carried())
    process = spawn.Process(target=_check_all, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        answer: list[str] | UserError = pipe.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"data: the process that tries the data and networks ended with status {process.exitcode}"
        ) from None
    finally:
        process.kill()  # after Ctrl-C: loading may take minutes
        process.join()
    if isinstance(answer, UserError):
        raise answer
    return answer


def _fits_digits(config: Resolved) -> bool:
    """Whether this is a small network on the digits, which needs no trial: a trial takes seconds."""
    model = config.model
    small = model.arch in ("fc", "conv2", "conv4", "conv6") and model.width >= NARROWEST
    return (
        config.data.name == "digits"
        and not config.data.subset
        and (small or (model.arch == "linear" and model.width == 1))
        and model.method in METHODS
    )


def _check_all(
    pipe: Connection,
    check: Callable[[Resolved], list[str]],
    configs: Sequence[Resolved],
    code: Mapping[str, Mapping[str, Any]],
) -> None:
    """The process of `preflight`: send the lines of the checks, or the first error of the user.

    `code` is the user's (`own.carried`). Any other error is printed here, and ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launch ends it
    collect_rarely()
    own.receive(code)
    try:
        pipe.send([*dict.fromkeys(line for config in configs for line in check(config))])
    except UserError as error:
        pipe.send(UserError(str(error)))


def run(planned: Plan, store: Store, options: Options, progress: Progress) -> None:
    """Train the cells of the plan with the executor that `options` names; see `train`."""
    with executor(planned.name, planned.todo, store, options) as execute:
        train(planned, store, options, progress, execute)


def train(planned: Plan, store: Store, options: Options, progress: Progress, execute: Execute) -> None:
    """Train the cells of the plan with `execute` until only failed ones are missing.

    Raises KeyboardInterrupt if stopped by SIGINT or SIGTERM, and `StoreAway` if the store is unreachable for
    too long. The store then has everything except the last second of epochs and the unfinished epoch.
    """
    todo, began = dict(planned.todo), datetime.now(UTC).isoformat()
    while todo:
        ready = _ready(todo)
        for group in _groups(ready, options.search):
            execute(group, planned.measured, progress)
        store.wait(time.monotonic() + options.patience)
        failed = progress.failures.keys() & ready.keys()
        short = store.insist(
            lambda failed=failed: {cell for cell in failed if _out_of_memory(store.failure(cell), began)},  # type: ignore[misc]
            options.patience,
        )
        if crowded := {cell: todo[cell] for cell in short}:
            progress.note(f"{len(crowded)} cells died or lacked memory beside others; now each alone")
            for cell in crowded:  # it has not failed yet, and Ray may be lost before it has its turn
                del progress.failures[cell]
            execute(crowded, planned.measured, progress, alone=True)
            progress.note("")
        store.insist(lambda: _strike_off(todo, store, progress), options.patience)
        if todo:
            store.insist(lambda: _wait_for_others(_ready(todo), store, progress), options.patience)


def _strike_off(todo: dict[str, Resolved], store: Store, progress: Progress) -> None:
    """Remove from `todo` the cells that are finished (here or by other launches) or not tried again."""
    states = store.states(todo)
    finished = {cell for cell, state in states.items() if state == "finished"}
    for cell, result in store.results(finished - progress.accuracies.keys()):  # another launch's
        progress.known(cell, *outcome(result))
    for cell in finished | ((progress.failures.keys() | progress.early) & todo.keys()):
        del todo[cell]


def _out_of_memory(failure: Json | None, began: str) -> bool:
    """Whether memory was short: on a GPU, on the host, or possibly, if the worker died without a message.

    A failure from before the launch `began` is not that of this cell's worker.
    """
    return not failed_since(failure, began) or failure["error"] in ("OutOfMemoryError", "MemoryError")  # type: ignore[index]


def _ready(todo: Mapping[str, Resolved]) -> dict[str, Resolved]:
    """The cells that do not need the subnetwork of another cell in `todo`."""
    return {cell: config for cell, config in todo.items() if config.model.init_from not in todo}


def _groups(todo: Mapping[str, Resolved], search: bool) -> Iterable[dict[str, Resolved]]:
    """All cells at once. For a search one side after another, because only cells of one side compete."""
    groups: dict[str, dict[str, Resolved]] = {}
    for cell, config in todo.items():
        groups.setdefault(side(config) if search else "", {})[cell] = config
    return groups.values()


def winners(sweep: Sweep, cells: Iterable[str], store: Store) -> dict[str, dict[str, Scalar]]:
    """For each side of a search, the searched values of the cell with the best validation accuracy."""
    searched = sorted({name for arm in sweep.arms for name in arm.searched()})
    best: dict[str, tuple[float, dict[str, Scalar]]] = {}
    for _, result in store.results(cells):
        config = resolve(from_dict(result["config"]))
        flat, accuracy = flatten(config), float(result["summary"]["best_validation_accuracy"])
        if accuracy > best.get(side(config), (-1.0, {}))[0]:
            best[side(config)] = accuracy, {name: flat[name] for name in searched}
    return {name: settings for name, (_, settings) in best.items()}


def _wait_for_others(todo: Mapping[str, Resolved], store: Store, progress: Progress) -> None:
    """Return as soon as a cell of `todo` is finished or free."""
    while all(state == "running" for state in store.states(todo).values()):
        progress.note(f"{len(todo)} cells are being trained by another launch; waiting for them")
        time.sleep(POLL)
    progress.note("")


@contextlib.contextmanager
def executor(name: str, cells: Mapping[str, Resolved], store: Store, options: Options) -> Iterator[Execute]:
    """The function that trains cells for `train`. Ray starts with the first cell, and ends with the block."""
    if options.executor == "inline":
        yield lambda group, measured, progress, alone=False: _inline(name, store, options, group, progress)
        return
    supervisor = Supervisor(
        Work(
            name=name,
            cells=cells,
            store=store.uri,
            launched=datetime.now(UTC).isoformat(),
            options=options,
            wandb_mode=os.environ.get("WANDB_MODE", ""),
            code=own.carried(),
        )
    )
    try:
        yield supervisor
    finally:
        supervisor.close()


def _inline(
    name: str, store: Store, options: Options, cells: Mapping[str, Resolved], progress: Progress
) -> None:
    trackers = installed_trackers()
    for cell, config in cells.items():
        progress.running(cell, 0)
        try:
            result = run_cell(
                config,
                store,
                sweep=name,
                trackers=trackers,
                patience=options.patience,
                ranks=options.processes(),
                on_record=lambda record, cell=cell: progress.running(  # type: ignore[misc]
                    cell, int(record["epoch"]), float(record["seconds"])
                ),
            )
        except (Busy, LeaseLost):
            progress.left(cell)
        except StoreAway:  # for the other cells, too
            raise
        except Exception as error:
            progress.failed(cell, f"{type(error).__name__}: {error}")
        else:
            progress.finished(cell, result["summary"]["test_accuracy"], result["seconds"])
