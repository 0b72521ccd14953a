"""``hiddenweights train``: one cell by hand."""

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hiddenweights import own
from hiddenweights.cells.cell import installed_trackers, run_cell, stored_ticket
from hiddenweights.cells.inputs import check_device, check_inputs
from hiddenweights.cells.store import PATIENCE, Busy, LeaseLost, Store, default_store
from hiddenweights.config import GROUPS, SUBNETWORK, TICKET_SUFFIX, CellConfig, ModelConfig, own_code
from hiddenweights.errors import StoreAway, Unreachable, UserError, shown
from hiddenweights.flat import flatten, unflatten
from hiddenweights.identity import (
    Resolved,
    check_has,
    id_of,
    pinned,
    resolve,
    same_data,
    short_name,
    split_of,
)
from hiddenweights.records import Record

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket


def train(
    config: Annotated[CellConfig, tyro.conf.arg(name="")] = CellConfig(),  # noqa: B008 (it is frozen)
    store: str | None = None,
    no_track: bool = False,
    patience: float = PATIENCE,
    ranks: int = 1,
    given: Annotated[frozenset[str], tyro.conf.Suppress, tyro.conf.Fixed] = frozenset(),
) -> int:
    """Train one cell, or resume it. A finished cell is reported and not trained again.

    Args:
        store: Folder or URL (s3://bucket/runs) of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
        no_track: Do not log to the installed trackers (W&B).
        patience: Seconds to wait if the store is unreachable, read-only or full.
        ranks: Processes that train the cell together, data parallel, each on its own GPU if there are any.
        given: The fields whose values were chosen. None of them is replaced by that of a ticket or a method.
    """
    if ranks < 1:
        raise UserError(f"--ranks: {ranks} must be above 0")
    results = Store(store or default_store())
    results.check()
    config, ticket = _settled(config, results, given)
    cell = id_of(config)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if result := results.result(cell):
        _say_finished(config, result["summary"], results, console)
        return 0
    check_device(config, ranks)
    notes = check_inputs(config, ticket)  # both report bad input before any file is written
    results.prepare()
    if ticket and not results.has_ticket(id_of(ticket.config)):
        results.add_ticket(id_of(ticket.config), ticket.to_bytes())
    console.print("\n".join([*notes, f"{short_name(config)} ({cell}) -> {results.uri}"]))
    done = 0
    with _progress(console) as progress:
        task = progress.add_task("training", total=config.train.epochs)

        def show(record: Record) -> None:
            nonlocal done
            done = int(record["epoch"])
            console.print(_line(record, config.train.epochs))
            progress.update(task, completed=done)

        try:
            trackers = [] if no_track else installed_trackers()
            run_cell(config, results, trackers=trackers, on_record=show, patience=patience, ranks=ranks)
        except KeyboardInterrupt:
            words = f"stopped after epoch {done}; run the same command again to resume"
            raise KeyboardInterrupt(words) from None
        except (Busy, LeaseLost) as error:
            console.print(str(error))
            return 1
        except (UserError, StoreAway, Unreachable):  # the store has no traceback of these
            raise
        except Exception as error:
            words = f"the traceback is in {results.uri}/cells/{cell}/failure.json"
            console.print(f"failed after epoch {done}: {type(error).__name__}: {shown(error)}\n{words}")
            return 1
    _name_ticket(results, cell, console)
    return 0


def _say_finished(config: Resolved, last: Record, results: Store, console: Console) -> None:
    cell = id_of(config)
    console.print(f"{short_name(config)} ({cell}) is finished in {results.uri}; not trained again")
    console.print(_line(last, config.train.epochs))
    _name_ticket(results, cell, console)


def _name_ticket(results: Store, cell: str, console: Console) -> None:
    with contextlib.suppress(Unreachable):  # the cell is finished all the same
        if results.has_ticket(cell):
            console.print(f"ticket: {results.uri}/cells/{cell}/ticket.ticket")


def _settled(config: CellConfig, store: Store, given: frozenset[str]) -> tuple[Resolved, "Ticket | None"]:
    """The config with every field filled in, and the ticket that it starts from.

    Raises `UserError` if a value that is `given` has no effect, or differs from that of the ticket.
    """
    for name, text in own_code(config).items():
        if own.is_versioned(text):  # as a report names it
            own.same_version(text, name, GROUPS[name])
    config, ticket = pinned(config), None
    asked = flatten(config)
    if config.model.init_from:
        config, ticket = _finetune(config, store, given)
    resolved = resolve(config)
    for name in sorted(given & asked.keys() - {"model.init_from"}):  # that may be a file, and is now its cell
        check_has(resolved, name, asked[name])
    return resolved, ticket


def _finetune(config: CellConfig, store: Store, given: frozenset[str]) -> tuple[CellConfig, "Ticket"]:
    """The config with the network of the ticket that `model.init_from` names, by cell or by file.

    On the ticket's own data set it also has the ticket's split, unless that was chosen.

    Raises `UserError` if a value that is `given`, or not the default, differs from that of the ticket.
    """
    from hiddenweights.tickets.ticket import read_ticket

    model = config.model
    assert model.init_from is not None
    file = model.init_from.endswith(TICKET_SUFFIX)
    ticket = read_ticket(model.init_from) if file else stored_ticket(model.init_from, store)
    cell = id_of(ticket.config)
    if file and store.has_ticket(cell) and stored_ticket(cell, store).record != ticket.record:
        raise UserError(
            f"model.init_from: {model.init_from!r} is of cell {cell}; {store.uri} has another one"
        )
    for name in SUBNETWORK:
        value, found = getattr(model, name), getattr(ticket.config.model, name)
        chosen = f"model.{name}" in given or value != getattr(ModelConfig(), name)
        if chosen and value != found:
            raise UserError(f"model.{name}: {value!r}, but the ticket has {found!r}; leave it out")
    if ":" in ticket.config.model.arch and model.arch != ticket.config.model.arch:
        raise UserError(
            f"model.arch: the ticket's network is code, {ticket.config.model.arch!r}, which is imported only"
            f" if you name it too: --model.arch {ticket.config.model.arch}"
        )
    settled = {name: getattr(ticket.config.model, name) for name in SUBNETWORK}
    if same_data(config, ticket.config):  # so that the mask has seen no validation image
        asked, default = flatten(config), flatten(CellConfig())
        left_open = {name for name, value in asked.items() if name not in given and value == default[name]}
        theirs = {name: value for name, value in split_of(ticket.config).items() if name in left_open}
        config = unflatten(theirs, config)
    return replace(config, model=replace(model, **settled, init_from=cell)), ticket


def _line(record: Record, epochs: int) -> str:
    """One epoch as one line."""
    words = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {record['train_loss']:.4f}"]
    splits = [split for split in ("train", "validation", "test") if f"{split}_accuracy" in record]
    words += [f"{split} {record[f'{split}_accuracy']:.2%}" for split in splits]
    return "  ".join([*words, f"kept {record['kept']:.1%}", f"{record['seconds']:.2f} s"])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
